"""A function as a static, hashable part of a program, compared by content.

JAX compiles once per static structure. A notebook cell that is run again makes a new function
object of the same code; compared by content it is the same structure, and nothing is compiled
again.
"""

import types
from collections.abc import Callable
from typing import Any

import equinox as eqx

from .fingerprint import Digest, fingerprint, is_module_class


class ByContent:
    """A function that equals another of the same content."""

    __slots__ = ("__wrapped__",)  # the name by which a digest finds the function

    def __init__(self, fn: Callable):
        self.__wrapped__ = fn

    def __eq__(self, other):
        return isinstance(other, ByContent) and (
            self.__wrapped__ is other.__wrapped__
            or fingerprint(self.__wrapped__) == fingerprint(other.__wrapped__)
        )

    def __hash__(self):
        # Content may change (a global is redefined); what is hashed may not.
        return hash(getattr(self.__wrapped__, "__name__", type(self.__wrapped__).__name__))

    def __repr__(self):
        return getattr(self.__wrapped__, "__qualname__", repr(self.__wrapped__))


class Code(eqx.Module):
    """A Python function, compared by code, defaults, closure and the globals it names."""

    _static: ByContent = eqx.field(static=True)

    def __init__(self, fn: Callable):
        self._static = ByContent(fn.fn if isinstance(fn, Code) else fn)

    @property
    def fn(self) -> Callable:
        """The function."""
        return self._static.__wrapped__

    def __call__(self, *args, **kwargs):
        """Call the function."""
        return self.fn(*args, **kwargs)

    def __eq__(self, other):
        return isinstance(other, Code) and self._static == other._static

    def __hash__(self):
        return hash(self._static)


class Fingerprints:
    """The digests of all code in a tree: a static argument of every compiled entry point.

    Taken at each call, so that redefining a global that a program names is noticed.
    """

    __slots__ = ("values", "_hash")

    def __init__(self, values: tuple):
        self.values, self._hash = values, hash(values)

    @staticmethod
    def of(tree: Any) -> "Fingerprints":
        """Collect from the static parts of a tree."""
        digest = Digest()
        _collect(tree, digest)
        return Fingerprints(tuple(digest.tokens))

    def __eq__(self, other):
        return isinstance(other, Fingerprints) and self.values == other.values

    def __hash__(self):
        return self._hash


def _collect(node: Any, digest: Digest) -> None:
    kind = type(node)
    if kind is ByContent:
        digest.add(node.__wrapped__)
    elif is_module_class(kind):
        digest.add(kind)  # of an installed class its name, else its methods
        for child in vars(node).values():
            _collect(child, digest)
    elif kind is dict:
        for child in node.values():
            _collect(child, digest)
    elif issubclass(kind, (tuple, list)):
        for child in node:
            _collect(child, digest)
    elif kind in (types.FunctionType, types.MethodType):
        digest.add(node)


def closes_over_tracer(tree: Any) -> bool:
    """Does any code in the tree name a value that is being traced?"""
    digest = Digest()
    _collect(tree, digest)
    return digest.traced
