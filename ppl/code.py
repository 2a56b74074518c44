"""A function as a static, hashable part of a program, compared by content.

JAX compiles once per static structure. A notebook cell that is run again makes a new function
object of the same code; compared by content it is the same structure, and nothing is compiled
again.
"""

import enum
import functools
import types
from collections.abc import Callable
from typing import Any

import equinox as eqx

from .fingerprint import Digest, fingerprint, is_module_class
from .guards import Guards
from .installed import is_constant


class ByContent:
    """A function that equals another of the same content."""

    __slots__ = ("__wrapped__", "_known")  # the first is how a digest finds the function

    def __init__(self, fn: Callable):
        self.__wrapped__ = fn
        self._known: tuple[Guards, tuple] | None = None

    def content(self) -> tuple:
        """The digest of the function as it is now: walked anew only if something has changed."""
        if self._known is None or not self._known[0].hold():
            self._known, tokens = _walk(self.__wrapped__)
            return tokens
        return self._known[1]

    def __eq__(self, other):
        return isinstance(other, ByContent) and (
            self.__wrapped__ is other.__wrapped__ or self.content() == other.content()
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
        found: list = []
        _collect(tree, found)
        return Fingerprints(tuple(map(_content, found)))

    def __eq__(self, other):
        return isinstance(other, Fingerprints) and self.values == other.values

    def __hash__(self):
        return self._hash


def closes_over_tracer(tree: Any) -> bool:
    """Does any code in the tree name a value that is being traced?"""
    found: list = []
    _collect(tree, found)
    digest = Digest()
    for node in found:
        digest.add(node.__wrapped__ if type(node) is ByContent else node)
    return digest.traced


_classes: dict[type, tuple[Guards, tuple]] = {}


def _content(node: Any) -> tuple:
    """The digest of a function or of a user's class."""
    if type(node) is ByContent:
        return node.content()
    if not isinstance(node, type):
        return fingerprint(node)
    known = _classes.get(node)
    if known is not None and known[0].hold():
        return known[1]
    known, tokens = _walk(node)
    if known is not None:
        _classes[node] = known
    return tokens


def _walk(value: Any) -> tuple[tuple[Guards, tuple] | None, tuple]:
    """What to keep of a digest (nothing where it may change unseen), and the digest."""
    digest = Digest()
    digest.add(value)
    tokens = tuple(digest.tokens)
    kept = digest.guards.complete and not digest.traced
    return (digest.guards, tokens) if kept else None, tokens


class _Kind(enum.Enum):
    OTHER, CODE, LIBRARY, MODULE, DICT, SEQUENCE, FUNCTION = range(7)


_OTHER, _CODE, _LIBRARY, _MODULE, _DICT, _SEQUENCE, _FUNCTION = _Kind


@functools.lru_cache(maxsize=4096)
def _kind(cls: type) -> _Kind:
    if cls is ByContent:
        return _CODE
    if is_module_class(cls):
        return _LIBRARY if is_constant(cls) else _MODULE
    if cls is dict:
        return _DICT
    if issubclass(cls, (tuple, list)):
        return _SEQUENCE
    return _FUNCTION if cls in (types.FunctionType, types.MethodType) else _OTHER


def _collect(node: Any, found: list) -> None:
    """Append what has a content of its own: functions, and the classes of a user's modules.

    An installed class is told by its name, which is in the structure of the tree.
    """
    kind = _kind(type(node))
    if kind is _OTHER:
        return
    if kind is _CODE or kind is _FUNCTION:
        found.append(node)
    elif kind is _LIBRARY:
        for child in vars(node).values():
            _collect(child, found)
    elif kind is _MODULE:
        found.append(type(node))
        for child in vars(node).values():
            _collect(child, found)
    elif kind is _DICT:
        for child in node.values():
            _collect(child, found)
    else:
        for child in node:
            _collect(child, found)
