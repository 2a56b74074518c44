"""Rules about text that newcomers ask for: lengths, missing letters, syllables."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from ...ppl.potential import Potential
from .alphabets import BytePotential, kept
from .units import SEPARATORS, Unit


class Count(Potential):
    r"""Weight 1 if there are `least` to `most` symbols, else 0; in any alphabet.

    `Count(most=20)` counts tokens, `Characters(Count(10, 80))` characters, `Words(Count(5, 7))`
    words, `Steps(Count(3, 3), "\n")` lines.
    """

    least: Int[Array, ""]
    most: Int[Array, ""]

    def __init__(self, least: int = 0, most: int | None = None):
        if most is not None and not 0 <= least <= most:
            raise ValueError(f"no number is at least {least} and at most {most}")
        largest = np.iinfo(np.int32).max
        self.least = jnp.asarray(least, jnp.int32)
        self.most = jnp.asarray(largest if most is None else most, jnp.int32)

    def start(self, length):
        """None so far."""
        return jnp.zeros((), jnp.int32)

    def advance(self, state, symbol, context=None):
        """One more."""
        return state + 1

    def log_prefix(self, state, remaining=None):
        """0 while the number can still be right, else -inf."""
        possible = state <= self.most
        if remaining is not None:
            possible = possible & (state + (remaining - 1) >= self.least)
        return jnp.where(possible, 0.0, -jnp.inf)

    def log_complete(self, state, context=None):
        """0 or -inf."""
        return jnp.where((state >= self.least) & (state <= self.most), 0.0, -jnp.inf)


class Without(Potential):
    """Over characters: weight 0 if one of `letters` is among them, else 1."""

    forbidden: Int[Array, "K"]

    def __init__(self, letters: str):
        if not letters:
            raise ValueError("say which letters are to be missing")
        codes = sorted({ord(c) for c in letters})
        # Padded, so that other letters compile nothing.
        self.forbidden = jnp.asarray(codes + [-1] * (-len(codes) % 16), jnp.int32)

    def start(self, length):
        """All well."""
        return jnp.ones((), bool)

    def advance(self, state, symbol, context=None):
        """Is it still?"""
        return state & ~jnp.any(self.forbidden == symbol)

    def log_prefix(self, state, remaining=None):
        """0 or -inf."""
        return jnp.where(state, 0.0, -jnp.inf)

    def log_complete(self, state, context=None):
        """0 or -inf."""
        return self.log_prefix(state)


class Syllables(eqx.Module):
    """A word under way: its vowel groups, and its last three bytes (0 before there are any)."""

    groups: Int[Array, ""]
    last: Int[Array, "3"]

    @staticmethod
    def none() -> "Syllables":
        """No word yet."""
        return Syllables(jnp.zeros((), jnp.int32), jnp.zeros(3, jnp.int32))

    def then(self, byte: Int[Array, ""]) -> "Syllables":
        """One more byte; a separator begins the next word."""
        byte = byte.astype(jnp.int32)
        byte = jnp.where((byte >= 65) & (byte <= 90), byte + 32, byte)
        begins = _vowel(byte) & ~_vowel(self.last[2])
        last = jnp.concatenate([self.last[1:], byte[None]])
        longer = Syllables(self.groups + begins.astype(jnp.int32), last)
        return kept(_separates(byte), Syllables.none(), longer)

    @property
    def number(self) -> Int[Array, ""]:
        """Syllables of the word if it ends here; more bytes never make it fewer."""
        first, before, end = self.last[0], self.last[1], self.last[2]
        le = (before == ord("l")) & (first > 0) & ~_vowel(first)
        silent = (end == ord("e")) & ~_vowel(before) & ~le & (self.groups > 1)
        return jnp.where(end > 0, jnp.maximum(1, self.groups - silent.astype(jnp.int32)), 0)


def syllables(unit: Unit) -> Int[Array, ""]:
    """Syllables of the words of a word or a line, by a rule of thumb for English.

    A word has one for each group of the letters a e i o u y, less one for a final e that stands
    alone (but for consonant + "le") if there are others, and at least one. Letters that are not
    ASCII count as consonants; bytes beyond the unit's buffer do not count.
    """

    def read(carry, byte):
        total, word = carry
        new = word.then(byte)
        return (total + jnp.where(_separates(byte), word.number, 0), new), None

    start = (jnp.zeros((), jnp.int32), Syllables.none())
    # The zeros after the unit are separators.
    raw = jnp.concatenate([unit.raw, jnp.zeros(1, jnp.uint8)])
    return jax.lax.scan(read, start, raw.astype(jnp.int32))[0][0]


class SyllableLines(BytePotential):
    """Weight 1 for a text of lines of so many syllables each (see `syllables`), else 0.

    Lines end with a newline, after which the text may end too. Draws are guided: a line never has
    too many syllables, though a text may still run out of tokens.
    """

    pattern: Int[Array, "lines"]

    def __init__(self, pattern: Sequence[int] = (5, 7, 5)):
        if not pattern or min(pattern) < 1:
            raise ValueError(f"a pattern is one positive number of syllables a line; got {pattern}")
        self.pattern = jnp.asarray(pattern, jnp.int32)

    @property
    def looks_ahead(self) -> bool:
        """Always."""
        return True

    def start(self, length):
        """All well; the line, its syllables before the word under way, and the word."""
        zero = jnp.zeros((), jnp.int32)
        return jnp.ones((), bool), zero, zero, Syllables.none()

    def advance(self, state, symbol, context=None):
        """One more byte."""
        well, line, count, word = state
        total = count + word.number
        newline = symbol == ord("\n")
        well = well & (~newline | ((total == self._wanted(line)) & (line < self.pattern.shape[0])))
        count = jnp.where(newline, 0, jnp.where(_separates(symbol), total, count))
        return well, line + newline.astype(jnp.int32), count, word.then(symbol)

    def log_prefix(self, state, remaining=None):
        """0, or -inf once a line has too many syllables."""
        well, line, count, word = state
        return jnp.where(well & (count + word.number <= self._wanted(line)), 0.0, -jnp.inf)

    def log_complete(self, state, context=None):
        """0 or -inf."""
        well, line, count, word = state
        total, lines = count + word.number, self.pattern.shape[0]
        last = (line == lines - 1) & (total == self._wanted(line))
        return jnp.where(well & (last | ((line == lines) & (total == 0))), 0.0, -jnp.inf)

    def _wanted(self, line: Array) -> Array:
        """Syllables of a line; none after the last."""
        lines = self.pattern.shape[0]
        return jnp.where(line < lines, self.pattern[jnp.minimum(line, lines - 1)], 0)


def haiku(pattern: Sequence[int] = (5, 7, 5)) -> BytePotential:
    """Lines of 5, 7 and 5 syllables (or another pattern): weight 1 or 0, draws guided."""
    return SyllableLines(pattern)


_SEPARATOR_TABLE = np.isin(np.arange(256), list(SEPARATORS.encode()))
_VOWEL_TABLE = np.isin(np.arange(256), list(b"aeiouy"))


def _separates(byte: Array) -> Bool[Array, ""]:
    return jnp.asarray(_SEPARATOR_TABLE)[byte]


def _vowel(byte: Array) -> Bool[Array, ""]:
    return jnp.asarray(_VOWEL_TABLE)[byte]
