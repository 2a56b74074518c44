"""What a digest has read and may change: as long as it is the same, so is the digest."""

import operator
import types
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

MISSING = object()
"""Stands for a name that is not there."""

_FIXED = (bool, int, float, complex, str, bytes, type(None), np.dtype, np.generic, jax.Array)
_FIXED += (type, types.FunctionType, types.ModuleType)  # of a library


class Guards:
    """Places that were read, each with the object that was found there.

    A walk notes each place that Python lets change: names, attributes, contents of containers and
    of NumPy arrays. `complete` is False if it read something else; nothing may then be concluded.
    """

    __slots__ = ("complete", "_names", "_attributes", "_contents", "_mappings", "_arrays")

    def __init__(self):
        self.complete = True
        self._names: list[tuple[Mapping, str, Any]] = []
        self._attributes: list[tuple[Any, str, Any]] = []
        self._contents: list[tuple[Any, tuple]] = []
        self._mappings: list[tuple[Mapping, tuple, tuple]] = []
        self._arrays: list[tuple[np.ndarray, tuple]] = []

    def name(self, names: Mapping, name: str) -> Any:
        """The value of a name, `MISSING` if there is none."""
        value = names.get(name, MISSING)
        self._names.append((names, name, value))
        return value

    def attribute(self, owner: Any, name: str) -> Any:
        """The value of an attribute, `MISSING` if there is none (or a cell is empty)."""
        value = _read(owner, name)
        self._attributes.append((owner, name, value))
        return value

    def contents(self, values: Any) -> None:
        """Which objects a list, deque or set holds."""
        self._contents.append((values, tuple(values)))

    def mapping(self, values: Mapping) -> None:
        """Which objects a dictionary (of an object, of a class) holds under which keys."""
        self._mappings.append((values, tuple(values), tuple(values.values())))

    def array(self, value: np.ndarray) -> None:
        """The numbers of a NumPy array (those that hold objects are not followed)."""
        self.complete &= not value.dtype.hasobject
        self._arrays.append((value, _numbers(value)))

    def whole(self, value: Any) -> None:
        """All that an object of a library holds, in attributes of plain kinds."""
        found, todo = set(), [value]
        while todo:
            value = todo.pop()
            if isinstance(value, _FIXED) or id(value) in found:
                continue
            found.add(id(value))
            if type(value) is tuple:
                todo += value
            elif hasattr(value, "__dict__") and not hasattr(value, "__slots__"):
                self.mapping(vars(value))
                todo += vars(value).values()
            else:
                self.complete = False
                return

    def hold(self) -> bool:
        """Is everything as it was read?"""
        if not self.complete:
            return False
        for names, name, value in self._names:
            if names.get(name, MISSING) is not value:
                return False
        for owner, name, value in self._attributes:
            if _read(owner, name) is not value:
                return False
        for values, before in self._contents:
            if not _same(values, before):
                return False
        for values, names, before in self._mappings:
            if not (_same(values, names) and _same(values.values(), before)):
                return False
        return all(_numbers(value) == numbers for value, numbers in self._arrays)


def _numbers(x: np.ndarray) -> tuple:
    return x.shape, x.dtype, x.tobytes()


def _read(owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name)
    except (AttributeError, ValueError):
        return MISSING


def _same(values: Any, before: tuple) -> bool:
    return len(values) == len(before) and all(map(operator.is_, values, before))
