"""Process rewards in their two meanings, which have different targets.

Scores r_1, ..., r_n of the beginnings of a text, one after each step: a product of step potentials
weighs it by r_1 r_2 ... r_n; telescoping potentials r_t / r_{t-1} weigh it by r_n alone, and the
earlier scores only guide the way (Puri et al. 2025, arXiv:2502.01618, has both).
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from ...ppl.code import Code
from ...ppl.potential import Potential


class Score(Potential):
    """Scores each symbol by itself: the weight of a prefix is that of its last symbol.

    `fn(symbol, *args)` gives nats, by operations of JAX. The symbol is what the alphabet says: a
    token id, a byte, a code point, or a `Unit` (`raw`, `length`) of `Words` and `Steps`. Arrays go
    into `args`. A text without symbols weighs 1.
    """

    fn: Code
    args: tuple[Any, ...]

    def __init__(self, fn: Callable[..., Any], *args: Any):
        self.fn, self.args = Code(fn), args

    def start(self, length):
        """No symbol yet: weight 1."""
        return jnp.zeros(())

    def advance(self, state, symbol, context=None):
        """The score of this symbol."""
        return jnp.asarray(self.fn(symbol, *self.args)).astype(state.dtype)

    def log_prefix(self, state, remaining=None):
        """That of the last symbol."""
        return state

    def log_complete(self, state, context=None):
        """That of the last symbol."""
        return state


class _OfScores(Potential):
    scores: Potential

    @property
    def reads_model(self) -> bool:
        """Do the scores?"""
        return self.scores.reads_model

    def over(self, vocabulary):
        """See `Potential.over`."""
        return type(self)(self.scores.over(vocabulary))


class StepProduct(_OfScores):
    """The product of the scores after each symbol: p(x) r_1(x) r_2(x) ... r_n(x).

    `scores` gives r_t as its prefix weight after t symbols. The end of the text adds nothing, a
    text without symbols weighs 1. `Steps(StepProduct(scores))` scores steps, `StepProduct(scores)`
    tokens.
    """

    def start(self, length):
        """See `Potential.start`; and the sum of the log scores."""
        return self.scores.start(length), jnp.zeros(())

    def advance(self, state, symbol, context=None):
        """See `Potential.advance`."""
        inner = self.scores.advance(state[0], symbol, context)
        return inner, state[1] + self.scores.log_prefix(inner).astype(state[1].dtype)

    def log_prefix(self, state, remaining=None):
        """The sum so far."""
        return state[1]

    def log_complete(self, state, context=None):
        """The sum."""
        return state[1]


class Telescoping(_OfScores):
    """The last score alone: p(x) r(x), r the complete weight of `scores`.

    On the way a text has the weight of its last score, so that each symbol adds r_t / r_{t-1}. A
    score of zero is final.
    """

    def start(self, length):
        """See `Potential.start`; and that no score was zero."""
        return self.scores.start(length), jnp.ones((), bool)

    def advance(self, state, symbol, context=None):
        """See `Potential.advance`."""
        inner = self.scores.advance(state[0], symbol, context)
        return inner, state[1] & ~jnp.isneginf(self.scores.log_prefix(inner))

    def log_prefix(self, state, remaining=None):
        """The last score."""
        return self._if(state[1], self.scores.log_prefix(state[0], remaining))

    def log_complete(self, state, context=None):
        """The score of the whole."""
        return self._if(state[1], self.scores.log_complete(state[0], context))

    def weigh(self, state, symbol, ended, remaining=None, context=None):
        """See `Potential.weigh`; by that of the scores, which may cost much."""
        inner, gain = self.scores.weigh(state[0], symbol, ended, remaining, context)
        gain = self._if(state[1], gain)
        return (inner, state[1] & (ended | ~jnp.isneginf(gain))), gain

    def _if(self, possible: Array, log_weight: Array) -> Array:
        return jnp.where(possible, log_weight, -jnp.inf)
