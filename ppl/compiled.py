"""`jit` for entry points: once per structure of the arguments, programs compared by content."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer

from .code import Fingerprints

_ARRAY = object()
"""In place of an array among the leaves."""


def compiled(fn: Callable) -> Callable:
    """Compile `fn`; arrays in the arguments are dynamic, the rest is static, compared by value.

    A second call with other arrays of the same shapes compiles nothing. A call returns when its
    result is there, so that whatever asks the host on the way has asked. `.lower` is that of
    `jax.jit`, with the arguments of `fn`.
    """

    def inner(static: _Static, arrays: list):
        args, kwargs = static.joined(arrays)
        leaves, structure = jax.tree.flatten(fn(*args, **kwargs))
        dynamic = [x for x in leaves if eqx.is_array(x)]
        done = jnp.zeros((), bool)
        if len(dynamic) == len(leaves):
            return done, jax.tree.unflatten(structure, leaves), None
        rest = tuple(_ARRAY if eqx.is_array(x) else x for x in leaves)
        return done, dynamic, _Static(structure, rest)

    inner.__name__, inner.__qualname__ = fn.__name__, fn.__qualname__
    jitted = jax.jit(inner, static_argnums=0)

    @functools.wraps(fn)
    def wrapped(*args, **kwargs):
        done, out, rest = jitted(*_split((args, kwargs)))
        if not isinstance(done, Tracer):
            done.block_until_ready()
        return out if rest is None else rest.joined(out)

    wrapped.lower = lambda *args, **kwargs: jitted.lower(*_split((args, kwargs)))  # pyright: ignore
    return wrapped


@jax.tree_util.register_static
class _Static:
    """What of a tree is not an array: its structure, other leaves, and the digests of its code."""

    __slots__ = ("structure", "rest", "_key", "_hash")

    def __init__(self, structure: Any, rest: tuple, prints: Fingerprints | None = None):
        self.structure, self.rest = structure, rest
        # The digests first: programs that differ are told apart before they are compared.
        self._key = (prints, tuple(map(_exact, rest)), structure)
        self._hash = hash(self._key)

    def joined(self, arrays: list) -> Any:
        """The tree with these arrays in it."""
        if not self.rest:
            return jax.tree.unflatten(self.structure, arrays)
        left = iter(arrays)
        leaves = [next(left) if x is _ARRAY else x for x in self.rest]
        return jax.tree.unflatten(self.structure, leaves)

    def __eq__(self, other):
        return isinstance(other, _Static) and self._key == other._key

    def __hash__(self):
        return self._hash


def _split(tree: Any) -> tuple[_Static, list]:
    """The static part of a tree, and its arrays."""
    leaves, structure = jax.tree.flatten(tree)
    arrays = [x for x in leaves if eqx.is_array(x)]
    rest = ()
    if len(arrays) < len(leaves):
        rest = tuple(_ARRAY if eqx.is_array(x) else x for x in leaves)
    return _Static(structure, rest, Fingerprints.of(tree)), arrays


def _exact(x: Any) -> tuple:
    """A leaf to be compared: 1, 1.0 and True differ, 0.0 and -0.0 too, and NaN is itself."""
    return type(x), repr(x) if isinstance(x, (float, complex)) else x
