"""A verifier that errs, as an observation model.

The limit of what resampling against it can reach, p tpr / (p tpr + (1 - p) fpr) where p is the
probability of a right text, is the point of Stroebl, Kapoor and Narayanan (2024), "Inference
scaling fLaws: the limits of LLM resampling with imperfect verifiers".
"""

import equinox as eqx
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Int

from ...ppl.log_weights import gain, product
from ...ppl.potential import Potential


class Verifier(Potential):
    """The likelihood of a verifier's verdict on the whole text.

    Law: a text that is right is accepted with probability `tpr`, one that is wrong with `fpr`;
    observed is that it was accepted (that it was rejected, if `accepted` is false). `check` says
    what is right: weight 1 for a right text, 0 for a wrong one; a weight in between is the
    probability of being right. On the way its prefix weight stands for it: with `fpr` 0, texts that
    can no longer be right are dropped at once. ValueError if a rate is no probability.
    """

    check: Potential
    if_right: Float[Array, ""]
    if_wrong: Float[Array, ""]
    eos: Int[Array, ""] | None

    def __init__(
        self,
        check: Potential,
        tpr: ArrayLike,
        fpr: ArrayLike,
        accepted: bool = True,
    ):
        tpr, fpr = _rate(tpr, "tpr"), _rate(fpr, "fpr")
        self.check, self.eos = check, None
        self.if_right, self.if_wrong = (tpr, fpr) if accepted else (1 - tpr, 1 - fpr)

    @property
    def reads_model(self) -> bool:
        """Does the check?"""
        return self.check.reads_model

    def start(self, length):
        """See `Potential.start`."""
        return self.check.start(length)

    def advance(self, state, symbol, context=None):
        """See `Potential.advance`."""
        return self.check.advance(state, symbol, context)

    def log_prefix(self, state, remaining=None):
        """See `Potential.log_prefix`."""
        return self._expected(self.check.log_prefix(state, remaining))

    def log_complete(self, state, context=None):
        """See `Potential.log_complete`."""
        return self._likelihood(self.check.log_complete(state, context))

    def weigh(self, state, symbol, ended, remaining=None, context=None):
        """See `Potential.weigh`; by the check's own, which may cost much."""
        before = self.check.log_prefix(state, remaining)
        state, added = self.check.weigh(state, symbol, ended, remaining, context)
        after = product([before, added])
        new = jnp.where(ended, self._likelihood(after), self._expected(after))
        return state, gain(new, self._expected(before))

    def log_next(self, state, remaining=None):
        """Known where that of the check is."""
        known = None if self.eos is None else self.check.log_next(state, remaining)
        if known is None:
            return None
        now = self.check.log_prefix(state, remaining)
        after = now + known
        new = self._expected(after).at[self.eos].set(self._likelihood(after[self.eos]))
        return gain(new, self._expected(now))

    def over(self, vocabulary):
        """See `Potential.over`."""
        fresh = self.check.over(vocabulary), jnp.asarray(vocabulary.eos, jnp.int32)
        return eqx.tree_at(lambda v: (v.check, v.eos), self, fresh, is_leaf=lambda x: x is None)

    def _likelihood(self, log_right: Array) -> Array:
        """Log probability of the verdict if the text is right with this log probability."""
        right = jnp.exp(jnp.minimum(log_right, 0.0))
        return _log(self.if_wrong + (self.if_right - self.if_wrong) * right)

    def _expected(self, log_right: Array) -> Array:
        """The same of a prefix: what is right so far may become wrong, never the reverse."""
        return jnp.where(self.if_right < self.if_wrong, _log(self.if_wrong),
                         self._likelihood(log_right))  # fmt: skip


def _log(x: Array) -> Array:
    return jnp.where(x == 0, -jnp.inf, jnp.log(jnp.where(x == 0, 1.0, x)))


def _rate(rate: ArrayLike, name: str) -> Float[Array, ""]:
    rate = jnp.asarray(rate, dtype=float)
    if rate.shape:
        raise ValueError(f"{name} is one number; multiply several verifiers, one for each rate")
    if not isinstance(rate, Tracer) and not 0 <= float(rate) <= 1:
        raise ValueError(f"{name} is a probability, between 0 and 1; got {float(rate)}")
    return rate
