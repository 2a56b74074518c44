"""Digests of functions by content: code, defaults, closure, globals and attributes.

What is installed (the standard library, third-party packages, this package) is taken to be
constant and digested by its qualified name, so that a digest costs microseconds and never wanders
into a library.
"""

import builtins
import collections
import dis
import enum
import functools
import hashlib
import os
import sys
import sysconfig
import types
import weakref
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np

from .errors import ProgramError

LARGE_CONSTANT = 1 << 20
"""Bytes above which a closed-over array is refused."""

_GENERATED = frozenset(
    "__dict__ __weakref__ __module__ __doc__ __annotations__ __qualname__ __firstlineno__ "
    "__slots__ "
    "__dataclass_fields__ __dataclass_params__ __match_args__ __abstractmethods__ __parameters__ "
    "__static_attributes__ __orig_bases__ _abc_impl".split()
)


_COMPOUND = frozenset((types.FunctionType, types.MethodType, tuple, list, dict, type))


class Identity:
    """Stands for an object without content to compare, which it does not keep alive."""

    def __init__(self, value: Any):
        self._hash = id(value)
        try:
            self._get: Callable = weakref.ref(value)
        except TypeError:
            self._get = lambda: value

    def __eq__(self, other):
        if self is other:
            return True
        return (
            isinstance(other, Identity) and self._get() is not None and self._get() is other._get()
        )

    def __hash__(self):
        return self._hash


class Digest:
    """A digest under construction: a flat list of tokens, with references to earlier visits."""

    def __init__(self):
        self.tokens: list = []
        self._seen: dict[Any, int] = {}
        self._alive: list = []  # ids are only unique among objects that live
        self._path: list[str] = []
        self.traced = False

    def add(self, value: Any) -> None:
        """Append the digest of any value that a program may name."""
        kind = type(value)
        if kind in (bool, int, str, bytes, type(None), type(...), type(NotImplemented)):
            self.tokens += (kind.__name__, value)
        elif kind in (float, complex):
            self.tokens += (kind.__name__, repr(value))
        elif kind in _COMPOUND:
            if self._visit(value):
                self._compound(value)
        elif is_module_class(kind):
            if self._visit(value):
                self._object(value)
        elif isinstance(value, jax.core.Tracer):
            self.traced = True
            self.tokens += ("tracer", Identity(value))
        elif isinstance(value, (np.ndarray, np.generic, jax.Array)):
            self._array(value)
        elif isinstance(value, types.ModuleType):
            self.tokens += ("module", value.__name__)
        elif self._visit(value):
            self._compound(value)

    def _visit(self, value: Any, extra: Any = None) -> bool:
        """Note a visit; the second one adds a reference to the first, which also ends recursion."""
        key = (id(value), extra)
        if key in self._seen:
            self.tokens += ("again", self._seen[key])
            return False
        self._seen[key] = len(self._seen)
        self._alive.append(value)
        return True

    def _compound(self, value: Any) -> None:
        if isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, ByContent):
            self.add(value.fn)
        elif isinstance(value, types.MethodType):
            self._items("method", (value.__func__, value.__self__))
        elif isinstance(value, functools.partial):
            self._items("partial", (value.func, value.args, value.keywords))
        elif isinstance(value, types.CodeType):
            self.tokens.append(_code(value).digest)
        elif isinstance(value, (tuple, list, collections.deque)):
            self.add(type(value))
            self._items("sequence", value)
        elif isinstance(value, dict):
            self.add(type(value))
            self._items("dict", [x for item in value.items() for x in item])
        elif isinstance(value, (set, frozenset)):
            self.tokens += (type(value).__name__, frozenset(_digest(x) for x in value))
        elif isinstance(value, slice):
            self._items("slice", (value.start, value.stop, value.step))
        elif isinstance(value, (property, staticmethod, classmethod, functools.cached_property)):
            names = ("fget", "fset", "fdel", "__func__", "func")
            self._items("descriptor", [getattr(value, name, None) for name in names])
        elif isinstance(value, enum.Enum):
            self._items("enum", (type(value).__qualname__, value.name, value.value))
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, types.BuiltinFunctionType):
            self._items("builtin", (value.__module__, value.__qualname__, value.__self__))
        else:
            self._object(value)

    def _items(self, kind: str, values: Any) -> None:
        self.tokens += (kind, len(values))
        for value in values:
            self.add(value)

    def _function(self, fn: types.FunctionType) -> None:
        if _is_constant(fn):
            self.tokens += ("library", fn.__module__, fn.__qualname__)
            return
        code = _code(fn.__code__)
        self.tokens += ("function", code.digest)
        self._named("defaults of " + fn.__name__, (fn.__defaults__, fn.__kwdefaults__))
        own = {k: v for k, v in vars(fn).items() if not k.startswith("__")}
        self._named(fn.__name__, own) if own else None
        for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
            try:
                content = cell.cell_contents
            except ValueError:
                self.tokens.append("empty cell")
                continue
            self._reached(fn, name, content, code.attributes)
        if _in_library(fn.__code__.co_filename) or _own(fn.__module__):
            return
        for name in code.globals:
            if name in fn.__globals__:
                self._reached(fn, name, fn.__globals__[name], code.attributes)
            elif not hasattr(builtins, name):
                self.tokens += ("undefined", name)
        for name in code.imports:
            if name in sys.modules:
                self._reached(fn, name, sys.modules[name], code.attributes)

    def _reached(self, fn: Callable, name: str, value: Any, attributes: tuple[str, ...]) -> None:
        self._path = [*self._path, fn.__name__]
        self._named(name, value, attributes)
        self._path = self._path[:-1]

    def _named(self, name: str, value: Any, attributes: tuple[str, ...] = ()) -> None:
        self.tokens.append(name)
        self._path = [*self._path, name]
        if isinstance(value, types.ModuleType):
            self._module(value, attributes)
        else:
            self.add(value)
        self._path = self._path[:-1]

    def _module(self, module: types.ModuleType, attributes: tuple[str, ...]) -> None:
        """A module by name; of one that is not installed also the attributes that may be meant."""
        self.tokens += ("module", module.__name__)
        file = getattr(module, "__file__", None)
        installed = file is None and module.__name__ in sys.builtin_module_names
        if installed or (file and _in_library(file)) or _own(module.__name__):
            return
        if self._visit(module, attributes):
            for name in attributes:
                if name in vars(module):
                    self._named(name, vars(module)[name], attributes)

    def _class(self, cls: type) -> None:
        self.tokens += ("class", cls.__module__, cls.__qualname__)
        if _is_constant(cls):
            return
        self._items("bases", cls.__bases__)
        for name, value in vars(cls).items():
            if name not in _GENERATED and not isinstance(
                value, (types.GetSetDescriptorType, types.MemberDescriptorType)
            ):
                self._named(name, value)

    def _object(self, value: Any) -> None:
        cls = type(value)
        slots, content = _slots(cls), getattr(value, "__dict__", {})
        open_ = is_module_class(cls) or cls in (jax.custom_jvp, jax.custom_vjp)
        open_ = open_ or not _is_constant(cls)
        if (slots or hasattr(value, "__dict__")) and (open_ or cls.__hash__ is None):
            self.add(cls)
            for name in slots:
                if hasattr(value, name):
                    self._named(name, getattr(value, name))
            self.tokens.append(len(content))
            for name, child in content.items():
                self._named(name, child)
        elif callable(getattr(value, "__wrapped__", None)):
            self._items(f"{cls.__module__}.{cls.__qualname__}", (value.__wrapped__,))
        else:
            self._leaf(value)

    def _leaf(self, value: Any) -> None:
        leaves, structure = jax.tree.flatten(value)
        try:
            if len(leaves) == 1 and leaves[0] is value:
                hash(value)
                self.tokens += (type(value).__qualname__, value)
                return
            hash(structure)
        except TypeError:
            self.tokens.append(Identity(value))
            return
        self.tokens.append(structure)
        self._items("leaves", leaves)

    def _array(self, value: Any) -> None:
        if value.nbytes > LARGE_CONSTANT:
            *_, fn, name = ("a program", "an array", *self._path)
            raise ProgramError(
                f"{fn} closes over {name!r}, which holds an array of {value.nbytes / 2**20:.1f} "
                "MB. It would be baked "
                "into the compiled code as a constant. Instead make it an argument of the "
                "function and write "
                f"ppl.bind(program, {name})."
            )
        self.tokens.append(_jax_array(value) if isinstance(value, jax.Array) else _bytes(value))


@functools.lru_cache(maxsize=4096)
def is_module_class(cls: type) -> bool:
    """Is this a class of `equinox.Module`? `isinstance` on its instances is slow."""
    return issubclass(cls, eqx.Module)


def _digest(value: Any) -> tuple:
    digest = Digest()
    digest.add(value)
    return tuple(digest.tokens)


def fingerprint(value: Any) -> tuple:
    """A hashable digest of a value that a program closes over; equal for equal content."""
    return _digest(value)


class ByContent:
    """A function that equals another of the same content."""

    __slots__ = ("fn",)

    def __init__(self, fn: Callable):
        self.fn = fn

    def __eq__(self, other):
        return isinstance(other, ByContent) and (
            self.fn is other.fn or fingerprint(self.fn) == fingerprint(other.fn)
        )

    def __hash__(self):
        # Content may change (a global is redefined); what is hashed may not.
        return hash(getattr(self.fn, "__name__", type(self.fn).__name__))

    def __repr__(self):
        return getattr(self.fn, "__qualname__", repr(self.fn))


@functools.lru_cache(maxsize=1024)
def _slots(cls: type) -> tuple[str, ...]:
    found: list[str] = []
    for base in cls.__mro__:
        slots = vars(base).get("__slots__", ())
        found += (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(n for n in found if n not in ("__weakref__", "__dict__"))


_jax_arrays: dict[int, tuple[weakref.ref, tuple]] = {}


def _jax_array(value: jax.Array) -> tuple:
    """JAX arrays do not change, so each is fetched from its device once."""
    known = _jax_arrays.get(id(value))
    if known is not None and known[0]() is value:
        return known[1]
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        digest = ("key", str(value.dtype), *_bytes(np.asarray(jax.random.key_data(value))))
    else:
        digest = ("jax", value.weak_type, *_bytes(np.asarray(value)))
    key = id(value)
    _jax_arrays[key] = (weakref.ref(value, lambda _: _jax_arrays.pop(key, None)), digest)
    return digest


def _bytes(value: Any) -> tuple:
    if value.dtype.hasobject:
        return ("objects", *_digest(value.tolist()))
    content = hashlib.sha256(np.ascontiguousarray(value).tobytes()).digest()
    return (type(value).__name__, value.shape, str(value.dtype), content)


class _Code:
    """What does not change about a code object: its digest, and the names it may look up."""

    __slots__ = ("digest", "globals", "attributes", "imports")

    def __init__(self, code: types.CodeType):
        loaded, imported, attributes = set(), set(), set()
        for instruction in dis.get_instructions(code):
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                loaded.add(instruction.argval)
            elif instruction.opname == "IMPORT_NAME":
                imported.add(instruction.argval)
            elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM"):
                attributes.add(instruction.argval)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                inner = _code(constant)
                loaded |= set(inner.globals)
                imported |= set(inner.imports)
                attributes |= set(inner.attributes)
        parts = (
            code.co_code,
            [_constant(c) for c in code.co_consts],
            code.co_names,
            code.co_varnames,
            code.co_freevars,
            code.co_cellvars,
            code.co_argcount,
            code.co_posonlyargcount,
            code.co_kwonlyargcount,
            code.co_flags,
            getattr(code, "co_exceptiontable", b""),
        )
        self.digest = hashlib.sha256(repr(parts).encode()).digest()
        self.globals, self.imports = tuple(sorted(loaded)), tuple(sorted(imported))
        self.attributes = tuple(sorted(attributes))


@functools.lru_cache(maxsize=4096)
def _code(code: types.CodeType) -> _Code:
    return _Code(code)


def _constant(value: Any) -> Any:
    """A literal with its types spelled out: 1, 1.0 and True differ, and so do 0.0 and -0.0."""
    if isinstance(value, types.CodeType):
        return _code(value).digest
    if isinstance(value, tuple):
        return [_constant(x) for x in value]
    if isinstance(value, frozenset):
        return ("frozenset", sorted(repr(_constant(x)) for x in value))
    return (type(value).__name__, repr(value))


def _is_constant(value: Any) -> bool:
    """Is this function or class an installed one, found under its name?"""
    module, name = value.__module__, value.__qualname__
    if not module or "<" in name:
        return False
    return _installed(module) and _lookup(module, name) is value


def _own(module: str | None) -> bool:
    return (module or "").split(".")[0] == __name__.split(".")[0]


@functools.lru_cache(maxsize=4096)
def _installed(module: str) -> bool:
    if _own(module) or module in sys.builtin_module_names:
        return True
    if module == "__main__":
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is not None and _in_library(file)


def _lookup(module: str, name: str) -> Any:
    found = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


@functools.lru_cache(maxsize=4096)
def _in_library(file: str) -> bool:
    return file.startswith("<frozen") or os.path.abspath(file).startswith(_roots())


@functools.cache
def _roots() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    return tuple(
        os.path.abspath(paths[name]) + os.sep
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
    )
