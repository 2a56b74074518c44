"""How compiled code finds a Python object: by a number that is an argument of the run.

The object is no part of the compiled structure, so that another function, grammar or vocabulary in
its place compiles nothing.
"""

import itertools
import weakref
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

_numbers = itertools.count()
_objects: "weakref.WeakValueDictionary[int, Any]" = weakref.WeakValueDictionary()


class _Anchor:
    """Keeps an object alive with the tree that names it; all anchors are alike to a compiler."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Anchor)

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return repr(self.value)


class Handle(eqx.Module):
    """Stands for a Python object in a pytree: its number is a leaf.

    The object lives as long as a handle to it that was made outside compiled code.
    """

    number: Int[Array, ""]
    _anchor: _Anchor = eqx.field(static=True)

    def __init__(self, value: Any):
        number = next(_numbers)
        _objects[number] = value
        self.number = jnp.asarray(number, jnp.int32)
        self._anchor = _Anchor(value)

    @property
    def value(self) -> Any:
        """The object; for use outside compiled code."""
        return self._anchor.value


def lookup(number: Any) -> Any:
    """The object of a number, in a callback; a batch of numbers is all the same one."""
    index = int(np.asarray(number).reshape(-1)[0])
    found = _objects.get(index)
    if found is None:
        raise RuntimeError(
            "a host function was called after its potential was deleted: keep the model, or the "
            "Reward, Check or Grammar, for as long as it runs"
        )
    return found
