"""A function as a static, hashable part of a program: equal when its code and what it closes over are equal.

JAX compiles once per static structure. A notebook cell that is run again makes a new function object of
the same code; compared by content it is the same structure, and nothing is compiled again.
"""

import functools
import types
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np

from .errors import ProgramError

LARGE_CONSTANT = 1 << 20
"""Bytes above which a closed-over array is refused."""


class Code(eqx.Module):
    """A Python function, compared by `fingerprint`: code, defaults, closure and the globals it names."""

    fn: Callable = eqx.field(static=True)

    def __call__(self, *args, **kwargs):
        return self.fn(*args, **kwargs)

    def __eq__(self, other):
        return isinstance(other, Code) and (
            self.fn is other.fn or fingerprint(self.fn) == fingerprint(other.fn)
        )

    def __hash__(self):
        return hash(fingerprint(self.fn))


def fingerprint(value: Any) -> Any:
    """A hashable digest of a value that a program closes over; equal for equal content."""
    return _digest(value, ())


def _digest(value: Any, seen: tuple[int, ...]) -> Any:
    if id(value) in seen:
        return ("recursion", seen.index(id(value)))
    seen = (*seen, id(value))
    if isinstance(value, types.FunctionType):
        return _function(value, seen)
    if isinstance(value, types.MethodType):
        return ("method", _function(value.__func__, seen), _digest(value.__self__, seen))
    if isinstance(value, functools.partial):
        return ("partial", *(_digest(x, seen) for x in (value.func, value.args, value.keywords)))
    if isinstance(value, types.CodeType):
        return _code(value, seen)
    if isinstance(value, types.ModuleType):
        return ("module", value.__name__)
    if isinstance(value, jax.core.Tracer):
        return ("tracer", id(value))
    if isinstance(value, (np.ndarray, jax.Array)):
        return _array(value)
    if isinstance(value, Code):
        return _digest(value.fn, seen)
    if isinstance(value, eqx.Module) or isinstance(value, (list, dict)):
        leaves, structure = jax.tree.flatten(value)
        return ("tree", _hashable(structure), *(_digest(leaf, seen) for leaf in leaves))
    if isinstance(value, tuple):
        return ("tuple", *(_digest(x, seen) for x in value))
    return _hashable(value)


def _function(fn: types.FunctionType, seen: tuple[int, ...]) -> Any:
    cells = fn.__closure__ or ()
    closed = []
    for name, cell in zip(fn.__code__.co_freevars, cells, strict=True):
        try:
            closed.append((name, _named(name, cell.cell_contents, fn, seen)))
        except ValueError as error:
            if isinstance(error, ProgramError):
                raise
            closed.append((name, "empty"))
    used = tuple(
        (name, _named(name, fn.__globals__[name], fn, seen))
        for name in sorted(_global_names(fn.__code__))
        if name in fn.__globals__
    )
    defaults = _digest((fn.__defaults__ or (), *sorted((fn.__kwdefaults__ or {}).items())), seen)
    return ("function", _code(fn.__code__, seen), defaults, tuple(closed), used)


def _named(name: str, value: Any, fn: Callable, seen: tuple[int, ...]) -> Any:
    for leaf in jax.tree.leaves(value) if not isinstance(value, types.FunctionType) else ():
        size = getattr(leaf, "nbytes", 0)
        if isinstance(leaf, (np.ndarray, jax.Array)) and not isinstance(leaf, jax.core.Tracer):
            if size > LARGE_CONSTANT:
                raise ProgramError(
                    f"{fn.__name__} closes over {name!r}, which holds an array of {size / 2**20:.1f} MB. It would be baked into "
                    "the compiled code as a constant. Instead make it an argument of the function and "
                    f"write ppl.bind(program, {name})."
                )
    return _digest(value, seen)


def _global_names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            names |= _global_names(const)
    return names


def _code(code: types.CodeType, seen: tuple[int, ...]) -> Any:
    constants = tuple(
        _code(c, seen) if isinstance(c, types.CodeType) else (type(c).__name__, c) for c in code.co_consts
    )
    return ("code", code.co_code, constants, code.co_names, code.co_varnames, code.co_argcount)


def _array(value) -> Any:
    if value.nbytes > LARGE_CONSTANT or jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        return ("array", id(value))
    host = np.asarray(value)
    return ("array", host.shape, str(host.dtype), host.tobytes())


def _hashable(value: Any) -> Any:
    try:
        hash(value)
    except TypeError:
        return ("identity", id(value))
    return (type(value).__name__, value)


class Fingerprints(eqx.Module):
    """The digests of all code in a tree as one static value: an argument of every compiled entry point.

    Taken at each call, so that redefining a global that a program names is noticed.
    """

    values: tuple = eqx.field(static=True)

    @staticmethod
    def of(tree: Any) -> "Fingerprints":
        """Collect from the static parts of a tree."""
        found: list = []
        _collect(tree, found, set())
        return Fingerprints(tuple(found))


def _collect(node: Any, found: list, seen: set[int]) -> None:
    if isinstance(node, Code):
        found.append(fingerprint(node.fn))
    elif isinstance(node, eqx.Module):
        for field in node.__dataclass_fields__:
            _collect(getattr(node, field, None), found, seen)
    elif isinstance(node, (tuple, list)):
        for child in node:
            _collect(child, found, seen)
    elif isinstance(node, dict):
        for child in node.values():
            _collect(child, found, seen)
