"""Potentials over the units of a text: words, and steps that end at a delimiter."""

import abc
import string

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PyTree, UInt8

from ...ppl.combinators.branches import any_member
from ...ppl.potential import Potential
from .alphabets import BytePotential, kept, like

# What ends a word: ASCII white space and punctuation, but not the apostrophe of "don't".
SEPARATORS = "".join(c for c in map(chr, range(128)) if not c.isalnum() and c != "'")
assert set(string.whitespace) < set(SEPARATORS)


class Unit(eqx.Module):
    """A word or a step: its bytes, zero-padded, and their number.

    `length` is the unit's own length; of one that is longer than `raw` only the beginning is there.
    """

    raw: UInt8[Array, "W"]
    length: Int[Array, ""]


class Cutting(eqx.Module):
    """The unit under way, the last bytes (-1 before there are any), and the state of `inner`."""

    raw: UInt8[Array, "W"]
    length: Int[Array, ""]
    tail: Int[Array, "D"]
    inner: PyTree


class Units(BytePotential):
    """A potential over bytes, from one whose symbols are `Unit`s; empty units are none.

    `inner` gets a unit when it ends, the last one at the end of the text. Its weights as prefix
    are those of the units that are whole.
    """

    inner: eqx.AbstractVar[Potential]
    max_bytes: eqx.AbstractVar[int]

    @property
    @abc.abstractmethod
    def span(self) -> int:
        """Number of bytes by which the end of a unit is known."""

    @abc.abstractmethod
    def ends(self, tail: Int[Array, "D"]) -> Bool[Array, ""]:
        """Do the last `span` bytes of the text end a unit?"""

    def start(self, length):
        """See `Potential.start`."""
        units = (length + self.span) // (1 + self.span)
        return self._empty(self.inner.start(units))

    def advance(self, state, symbol, context=None):
        """See `Potential.advance`."""
        byte = symbol.astype(jnp.int32)
        here = jnp.arange(self.max_bytes, dtype=jnp.int32) == state.length
        raw = jnp.where(here, byte.astype(jnp.uint8), state.raw)
        tail = jnp.concatenate([state.tail[1:], byte[None]])
        length, over = state.length + 1, self.ends(tail)
        inner = self._give(Cutting(raw, length, tail, state.inner), length - self.span, over)
        return kept(over, self._empty(inner), Cutting(raw, length, tail, inner))

    def log_prefix(self, state, remaining=None):
        """See `Potential.log_prefix`."""
        if remaining is not None:
            left = remaining - 1
            fresh = (left + self.span) // (1 + self.span)
            going = 1 + (left + self.span - 1) // (1 + self.span)
            remaining = 1 + jnp.where(state.length > 0, going, fresh)
        return self.inner.log_prefix(state.inner, remaining)

    def log_complete(self, state, context=None):
        """See `Potential.log_complete`."""
        return self.inner.log_complete(self._give(state, state.length, jnp.ones((), bool)))

    def _give(self, state: Cutting, length: Array, over: Array) -> PyTree:
        """The state of `inner` after the unit of the first `length` bytes, if there is one."""
        given = over & (length > 0)
        inside = jnp.arange(self.max_bytes, dtype=jnp.int32) < length
        unit = Unit(jnp.where(inside, state.raw, jnp.uint8(0)), length)

        def advance(inner):
            new = self.inner.advance(inner, unit)  # pyright: ignore[reportArgumentType]: its symbol
            return jax.tree.map(like, new, inner)

        # Few bytes end a unit: `inner` runs only when one does for some particle.
        new = jax.lax.cond(any_member(given), advance, lambda inner: inner, state.inner)
        return kept(given, new, state.inner)

    def _empty(self, inner: PyTree) -> Cutting:
        raw = jnp.zeros(self.max_bytes, jnp.uint8)
        return Cutting(raw, jnp.int32(0), jnp.full(self.span, -1, jnp.int32), inner)


class Words(Units):
    """A potential over bytes, from one over words, as `Unit`s of at most `max_bytes` bytes.

    Words are what stands between `separators` (characters of one byte; by default ASCII white space
    and punctuation except the apostrophe), so that they hold letters, digits and all that is not
    ASCII.
    """

    inner: Potential
    separators: Bool[Array, "256"]
    max_bytes: int = eqx.field(static=True)

    def __init__(self, inner: Potential, max_bytes: int = 32, separators: str = SEPARATORS):
        table = np.zeros(256, bool)
        table[list(separators.encode())] = True
        if not separators.isascii():
            raise ValueError("separators of words are ASCII characters, one byte each")
        self.inner, self.max_bytes = inner, _positive(max_bytes)
        self.separators = jnp.asarray(table)

    @property
    def span(self) -> int:
        """One byte."""
        return 1

    def ends(self, tail):
        """A separator does."""
        return self.separators[tail[0]]


class Steps(Units):
    r"""A potential over bytes, from one over steps, as `Unit`s of at most `max_bytes` bytes.

    A step ends at `delimiter` (a line: "\n"; a paragraph: "\n\n"; a tag), which is no part of
    it.
    """

    inner: Potential
    delimiter: Int[Array, "D"]
    max_bytes: int = eqx.field(static=True)

    def __init__(self, inner: Potential, delimiter: str | bytes = "\n", max_bytes: int = 128):
        raw = delimiter.encode() if isinstance(delimiter, str) else delimiter
        if not raw:
            raise ValueError("a delimiter has at least one character")
        self.inner, self.max_bytes = inner, _positive(max_bytes)
        self.delimiter = jnp.asarray(list(raw), jnp.int32)

    @property
    def span(self) -> int:
        """The bytes of the delimiter."""
        return self.delimiter.shape[-1]

    def ends(self, tail):
        """The delimiter does."""
        return jnp.all(tail == self.delimiter)


def _positive(max_bytes: int) -> int:
    if max_bytes < 1:
        raise ValueError(f"max_bytes is the longest unit that is kept, at least 1; got {max_bytes}")
    return max_bytes
