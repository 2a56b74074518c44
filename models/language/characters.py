"""Potentials over the characters of a text, by a UTF-8 decoder that is carried on the device.

Bytes that are no character become U+FFFD as the Unicode Standard recommends (16.0, section 3.9,
"U+FFFD substitution of maximal subparts"), and as Python's `bytes.decode("utf-8", "replace")` does.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from ...ppl.potential import Potential
from .alphabets import BytePotential, kept

REPLACEMENT = 0xFFFD


class Decoding(eqx.Module):
    """A character of which some bytes have come: `missing` more, the next from `low` to `high`."""

    code: Int[Array, ""]
    missing: Int[Array, ""]
    low: Int[Array, ""]
    high: Int[Array, ""]


class Characters(BytePotential):
    """A potential over bytes, from one whose symbols are Unicode code points (int32 scalars).

    A character may be split between tokens: `inner` gets it with its last byte, and a character
    that is cut off by the end of the text as U+FFFD. Its weights as prefix are those of the
    characters that are whole.
    """

    inner: Potential
    ahead: bool = eqx.field(static=True, default=False)

    @property
    def looks_ahead(self) -> bool:
        """As told; see `Bytes`."""
        return self.ahead

    def start(self, length):
        """See `Potential.start`."""
        return _whole(), self.inner.start(length)

    def advance(self, state, symbol, context=None):
        """See `Potential.advance`."""
        decoding, inner = state
        byte = symbol.astype(jnp.int32)
        open_ = decoding.missing > 0
        fits = (byte >= decoding.low) & (byte <= decoding.high)
        inner = self._give(inner, jnp.int32(REPLACEMENT), open_ & ~fits)
        code = decoding.code * 64 + (byte & 63)
        goes_on = open_ & fits
        begun, invalid = _begin(byte)
        missing = jnp.where(goes_on, decoding.missing - 1, begun.missing)
        whole = Decoding(code, missing, jnp.int32(0x80), jnp.int32(0xBF))
        new = kept(goes_on, whole, begun)
        symbol = jnp.where(invalid & ~goes_on, REPLACEMENT, new.code)
        return new, self._give(inner, symbol, missing == 0)

    def log_prefix(self, state, remaining=None):
        """See `Potential.log_prefix`."""
        decoding, inner = state
        if remaining is not None:
            remaining = remaining + (decoding.missing > 0).astype(jnp.int32)
        return self.inner.log_prefix(inner, remaining)

    def log_complete(self, state, context=None):
        """See `Potential.log_complete`."""
        decoding, inner = state
        return self.inner.log_complete(
            self._give(inner, jnp.int32(REPLACEMENT), decoding.missing > 0)
        )

    def _give(self, inner: PyTree, symbol: Array, given: Bool[Array, ""]) -> PyTree:
        return kept(given, self.inner.advance(inner, symbol), inner)


def _whole() -> Decoding:
    return Decoding(jnp.int32(0), jnp.int32(0), jnp.int32(0x80), jnp.int32(0xBF))


def _begin(byte: Int[Array, ""]) -> tuple[Decoding, Bool[Array, ""]]:
    """The decoder after a byte that begins a character, and whether none can begin with it.

    The bounds of the second byte exclude overlong forms, surrogates and what is above U+10FFFF
    (Unicode Standard, table 3-7).
    """
    two, three, four = (byte >= 0xC2), (byte >= 0xE0), (byte >= 0xF0)
    invalid = ((byte >= 0x80) & ~two) | (byte > 0xF4)
    missing = two.astype(jnp.int32) + three.astype(jnp.int32) + four.astype(jnp.int32)
    missing = jnp.where(invalid, 0, missing)
    mask = jnp.where(four, 0x07, jnp.where(three, 0x0F, jnp.where(two, 0x1F, 0x7F)))
    low = jnp.where(byte == 0xE0, 0xA0, jnp.where(byte == 0xF0, 0x90, 0x80))
    high = jnp.where(byte == 0xED, 0x9F, jnp.where(byte == 0xF4, 0x8F, 0xBF))
    as_int = [x.astype(jnp.int32) for x in (byte & mask, missing, low, high)]
    return Decoding(*as_int), invalid
