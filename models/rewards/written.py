"""Potentials that weigh whole texts, of which what is written is carried along as an array."""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ...ppl.errors import ProgramError
from ...ppl.hot import Hot
from ...ppl.log_weights import gain
from ...ppl.potential import Potential


class Written(eqx.Module):
    """The tokens so far, `tokens[:count]`, and whether the end came; it is no part of them."""

    tokens: Int[Array, "length"]
    count: Int[Array, ""]
    ended: Bool[Array, ""]

    @staticmethod
    def nothing(length: int) -> "Written":
        """The empty text, with room for `length` tokens."""
        return Written(jnp.zeros(length, jnp.int32), jnp.int32(0), jnp.zeros((), bool))

    def write(self, token: Int[Array, ""], eos: Int[Array, ""]) -> "Written":
        """With one more token; after the end nothing more is written."""
        ended = self.ended | (token == eos)
        tokens = self.tokens.at[self.count].set(token.astype(jnp.int32), mode="drop")
        return Written(
            jnp.where(ended, self.tokens, tokens),
            jnp.where(ended, self.count, self.count + 1),
            ended,
        )


class OfWritten(Potential):
    """A potential that reads all tokens of a text at once: `value` says what they weigh.

    The prefix weight is 1 without `prefixes`; with it, it is the value of what is written so far
    (of the empty text 1), so that the weights telescope to that of the complete text. The value is
    computed only in a step in which some particle needs it, and no more for a text whose weight
    is zero or NaN.
    """

    eos: eqx.AbstractVar[Int[Array, ""] | None]
    prefixes: eqx.AbstractVar[bool]

    @abc.abstractmethod
    def value(self, written: Written, need: Bool[Array, ""]) -> Float[Array, ""]:
        """Log weight of what is written, nats; anything where it is not needed."""

    @property
    def name(self) -> str:
        """For messages."""
        return type(self).__name__

    def over(self, vocabulary):
        """See `Potential.over`."""
        if self.eos is not None:
            return self
        eos = jnp.asarray(vocabulary.eos, jnp.int32)
        return eqx.tree_at(lambda p: p.eos, self, eos, is_leaf=lambda x: x is None)

    def start(self, length):
        """See `Potential.start`."""
        end_of(self.eos, self.name)
        return Hot((Written.nothing(length), jnp.zeros(())))

    def advance(self, state, symbol, context=None):
        """See `Potential.advance`."""
        return self._advanced(state, symbol, jnp.zeros((), bool))

    def log_prefix(self, state, remaining=None):
        """See `Potential.log_prefix`."""
        return state.value[1]

    def log_complete(self, state, context=None):
        """See `Potential.log_complete`."""
        written, before = state.value
        need = _going(written, before)
        return jnp.where(need, self.value(written, need), before)

    def weigh(self, state, symbol, ended, remaining=None, context=None):
        """See `Potential.weigh`."""
        new = self._advanced(state, symbol, ended)
        return new, gain(new.value[1], state.value[1])

    def _advanced(self, state: Hot, symbol: Array, ended: Bool[Array, ""]) -> Hot:
        """With one more symbol, and the log weight then: complete if `ended`, else of a prefix."""
        written, before = state.value
        new = written.write(symbol, end_of(self.eos, self.name))
        need = _going(written, before) & (ended | (self.prefixes & ~new.ended))
        return Hot((new, jnp.where(need, self.value(new, need), before)))


def _going(written: Written, log_weight: Array) -> Bool[Array, ""]:
    """Is this a text that still counts: not ended, nor impossible, nor NaN?"""
    return ~written.ended & jnp.isfinite(log_weight)


def end_of(eos: Int[Array, ""] | None, what: str) -> Int[Array, ""]:
    """The end token of a potential that has been put on a vocabulary, else an error."""
    if eos is None:
        raise ProgramError(
            f"{what} is on no vocabulary yet: multiply a model by it, or use "
            "potential.over(models.Vocabulary(token_bytes, eos))"
        )
    return eos
