"""What is installed, and so taken not to change: the standard library, packages, this package."""

import functools
import os
import sys
import sysconfig
from typing import Any


def is_constant(value: Any) -> bool:
    """Is this function or class an installed one, found under its name?"""
    module, name = value.__module__, value.__qualname__
    if not module or "<" in name:
        return False
    return is_installed(module) and _lookup(module, name) is value


def is_own(module: str | None) -> bool:
    """Is this a module of this package?"""
    return (module or "").split(".")[0] == __name__.split(".")[0]


@functools.lru_cache(maxsize=4096)
def is_installed(module: str) -> bool:
    """Is the module of this name installed?"""
    if is_own(module) or module in sys.builtin_module_names:
        return True
    if module == "__main__":
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is not None and in_library(file)


def _lookup(module: str, name: str) -> Any:
    found = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


@functools.lru_cache(maxsize=4096)
def in_library(file: str) -> bool:
    """Is this file of the standard library or of an installed package?"""
    return file.startswith("<frozen") or os.path.abspath(file).startswith(_roots())


@functools.cache
def _roots() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    return tuple(
        os.path.abspath(paths[name]) + os.sep
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
    )
