"""Digests of functions by content: code, defaults, closure, globals and attributes.

What is installed (the standard library, third-party packages, this package) is taken to be
constant and digested by its qualified name, so that a digest costs microseconds and never wanders
into a library.
"""

import builtins
import collections
import enum
import functools
import hashlib
import sys
import types
import weakref
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.dtypes import prng_key

from .bytecode import Contents, contents
from .errors import ProgramError
from .guards import MISSING, Guards
from .installed import in_library, is_constant, is_installed, is_own

LARGE_CONSTANT = 1 << 20
"""Bytes above which a closed-over array is refused."""

_GENERATED = frozenset(
    "__dict__ __weakref__ __module__ __doc__ __annotations__ __qualname__ __slots__ "
    "__firstlineno__ "
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
    """A digest under construction: a flat list of tokens, with references to earlier visits.

    `guards`: what was read on the way that may change. `traced`: was a tracer met?
    """

    def __init__(self):
        self.tokens: list = []
        self.guards = Guards()
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
        elif kind in _COMPOUND or is_module_class(kind):  # known not to be what follows
            self._compound(value)
        elif isinstance(value, Tracer):
            self.traced = True
            self.tokens += ("tracer", Identity(value))
        elif isinstance(value, (np.ndarray, np.generic, jax.Array)):
            self._array(value)
        elif isinstance(value, types.ModuleType):
            self.tokens += ("module", value.__name__)
        else:
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
        if not self._visit(value):
            return
        if isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.MethodType):
            self._items("method", (value.__func__, value.__self__))
        elif isinstance(value, functools.partial):
            fields = ("func", "args", "keywords")
            self._items("partial", [self.guards.attribute(value, name) for name in fields])
        elif isinstance(value, types.CodeType):
            self.tokens.append(contents(value).digest)
        elif isinstance(value, (tuple, list, collections.deque)):
            if not isinstance(value, tuple):
                self.guards.contents(value)
            self.add(type(value))
            self._items("sequence", value)
        elif isinstance(value, dict):
            self.guards.mapping(value)
            self.add(type(value))
            self._items("dict", [x for item in value.items() for x in item])
        elif isinstance(value, (set, frozenset)):
            self.guards.contents(value)
            self.tokens += (type(value).__name__, frozenset(self._apart(x) for x in value))
        elif isinstance(value, slice):
            self._items("slice", (value.start, value.stop, value.step))
        elif isinstance(value, (property, staticmethod, classmethod, functools.cached_property)):
            names = ("fget", "fset", "fdel", "__func__", "func")
            found = [self.guards.attribute(value, name) for name in names]
            self._items("descriptor", [None if x is MISSING else x for x in found])
        elif isinstance(value, enum.Enum):
            self._items("enum", (type(value).__qualname__, value.name, value.value))
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, types.BuiltinFunctionType):
            self._items("builtin", (value.__module__, value.__qualname__, value.__self__))
        else:
            self._object(value)

    def _apart(self, value: Any) -> tuple:
        """A digest without references to this one, which takes over what it may change with."""
        inner = Digest()
        inner.guards = self.guards
        inner.add(value)
        self.traced |= inner.traced
        return tuple(inner.tokens)

    def _items(self, kind: str, values: Any) -> None:
        self.tokens += (kind, len(values))
        for value in values:
            self.add(value)

    def _function(self, fn: types.FunctionType) -> None:
        if is_constant(fn):
            self.tokens += ("library", fn.__module__, fn.__qualname__)
            return
        read = self.guards.attribute
        code = contents(read(fn, "__code__"))
        self.tokens += ("function", code.digest)
        self._path.append(fn.__name__)
        self._named("its defaults", (read(fn, "__defaults__"), read(fn, "__kwdefaults__")))
        self.guards.mapping(vars(fn))
        own = {k: v for k, v in vars(fn).items() if not k.startswith("__")}
        if own:
            self._named("its attributes", own)
        self._names(fn, code)
        self._path.pop()

    def _names(self, fn: types.FunctionType, code: Contents) -> None:
        """What the closure and the globals hold under the names that the function uses."""
        for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
            content = self.guards.attribute(cell, "cell_contents")
            if content is MISSING:
                self.tokens.append("empty cell")
                continue
            self._named(name, content, code.attributes)
        if in_library(fn.__code__.co_filename) or is_own(fn.__module__):
            return
        for name in code.globals:
            value = self.guards.name(fn.__globals__, name)
            if value is not MISSING:
                self._named(name, value, code.attributes)
            elif self.guards.name(vars(builtins), name) is MISSING:
                self.tokens += ("undefined", name)
        for name in code.imports:
            value = self.guards.name(sys.modules, name)
            if value is not MISSING:
                self._named(name, value, code.attributes)

    def _named(self, name: str, value: Any, attributes: tuple[str, ...] = ()) -> None:
        self.tokens.append(name)
        self._path.append(name)
        if isinstance(value, types.ModuleType):
            self._module(value, attributes)
        else:
            self.add(value)
        self._path.pop()

    def _module(self, module: types.ModuleType, attributes: tuple[str, ...]) -> None:
        """A module by name; of one that is not installed also the attributes that may be meant."""
        self.tokens += ("module", module.__name__)
        if not is_installed(module.__name__) and self._visit(module, attributes):
            for name in attributes:
                value = self.guards.name(vars(module), name)
                if value is not MISSING:
                    self._named(name, value, attributes)

    def _class(self, cls: type) -> None:
        self.tokens += ("class", cls.__module__, cls.__qualname__)
        if is_constant(cls):
            return
        self.guards.mapping(vars(cls))
        self._items("bases", self.guards.attribute(cls, "__bases__"))
        for name, value in vars(cls).items():
            if name not in _GENERATED and not isinstance(
                value, (types.GetSetDescriptorType, types.MemberDescriptorType)
            ):
                self._named(name, value)

    def _object(self, value: Any) -> None:
        cls = type(value)
        slots, content = _slots(cls), getattr(value, "__dict__", {})
        open_ = is_module_class(cls) or cls in (jax.custom_jvp, jax.custom_vjp)
        open_ = open_ or not is_constant(cls)
        if (slots or hasattr(value, "__dict__")) and (open_ or cls.__hash__ is None):
            self.add(cls)
            for name in slots:
                slot = self.guards.attribute(value, name)
                if slot is not MISSING:
                    self._named(name, slot)
            self.guards.mapping(content)
            self.tokens.append(len(content))
            for name, child in content.items():
                self._named(name, child)
        elif callable(getattr(value, "__wrapped__", None)):
            wrapped = self.guards.attribute(value, "__wrapped__")
            self._items(f"{cls.__module__}.{cls.__qualname__}", (wrapped,))
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
        self.guards.whole(value)
        self.tokens.append(structure)
        self._items("leaves", leaves)

    def _array(self, value: Any) -> None:
        if value.nbytes > LARGE_CONSTANT:
            *_, fn, name = ("a program", "an array", *self._path)
            raise ProgramError(
                f"{fn} closes over {name!r}, which holds an array of {value.nbytes / 2**20:.1f} "
                "MB. It would be baked into the compiled code as a constant. Instead make it an "
                f"argument of the function and write ppl.bind(program, {name})."
            )
        if isinstance(value, jax.Array):
            self.tokens.append(_jax_array(value))
            return
        self.tokens.append(_bytes(value))
        if isinstance(value, np.ndarray):
            self.guards.array(value)


@functools.lru_cache(maxsize=4096)
def is_module_class(cls: type) -> bool:
    """Is this a class of `equinox.Module`? `isinstance` on its instances is slow."""
    return issubclass(cls, eqx.Module)


def fingerprint(value: Any) -> tuple:
    """A hashable digest of a value that a program closes over; equal for equal content."""
    digest = Digest()
    digest.add(value)
    return tuple(digest.tokens)


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
    if jnp.issubdtype(value.dtype, prng_key):
        digest = ("key", str(value.dtype), *_bytes(np.asarray(jax.random.key_data(value))))
    else:
        digest = ("jax", value.weak_type, *_bytes(np.asarray(value)))
    key = id(value)
    _jax_arrays[key] = (weakref.ref(value, lambda _: _jax_arrays.pop(key, None)), digest)
    return digest


def _bytes(value: Any) -> tuple:
    if value.dtype.hasobject:
        return ("objects", *fingerprint(value.tolist()))
    content = hashlib.sha256(np.ascontiguousarray(value).tobytes()).digest()
    return (type(value).__name__, value.shape, str(value.dtype), content)
