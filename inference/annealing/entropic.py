"""Entropic annealing: temper the weights when they have collapsed early.

The rules are those of Entropic Particle Filtering (ePF) for reward models that are overconfident
early; with ESS fraction rho, entropy H of the weights over log N and progress u = t / length.
"""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..resampling import effective_sample_size
from .base import Annealing


def _array(x):
    return jnp.asarray(x, dtype=float)


class Rule(eqx.Module):
    """How hot the weights are made."""

    @abc.abstractmethod
    def exponent(
        self, log_weights: Float[Array, "n"], progress: Float[Array, ""]
    ) -> Float[Array, ""]:
        """The power of the weights, in [0, 1]."""


class ESSRule(Rule):
    """min(1, rho / (1 - u))."""

    def exponent(self, log_weights, progress):
        """See `Rule.exponent`."""
        fraction = effective_sample_size(log_weights) / log_weights.shape[0]
        return jnp.minimum(1, fraction / jnp.maximum(1 - progress, jnp.finfo(progress.dtype).tiny))


class EntropyRule(Rule):
    """H + (1 - H) u, with H the entropy of the weights over log N (1 for one particle)."""

    def exponent(self, log_weights, progress):
        """See `Rule.exponent`."""
        n = log_weights.shape[0]
        w = jax.nn.softmax(log_weights)
        entropy = -jnp.sum(jnp.where(w > 0, w * jnp.log(jnp.where(w > 0, w, 1)), 0))
        entropy = entropy / jnp.log(jnp.asarray(n, w.dtype)) if n > 1 else jnp.ones_like(entropy)
        return jnp.clip(entropy + (1 - entropy) * progress, 0, 1)


class BaseRule(Rule):
    """1 / (2 - u), whatever the weights."""

    def exponent(self, log_weights, progress):
        """See `Rule.exponent`."""
        return 1 / (2 - progress)


class Entropic(Annealing):
    """Resample by the weights to the power that `rule` gives, and carry the rest as a weight.

    Active while the effective sample size is below `below` N and progress below `until`. Law: the
    target is kept: a particle resampled by w^beta goes on with the weight w^(1 - beta).
    """

    rule: Rule = eqx.field(default_factory=ESSRule)
    below: Float[Array, ""] = eqx.field(default=0.5, converter=_array)
    until: Float[Array, ""] = eqx.field(default=0.5, converter=_array)

    def priority(self, weighted, t, length):
        """See `Annealing.priority`."""
        log_w = weighted.log_weights
        progress = t.astype(log_w.dtype) / max(length, 1)
        size = effective_sample_size(log_w)
        active = (size < self.below.astype(size.dtype) * log_w.shape[0]) & (
            progress < self.until.astype(log_w.dtype)
        )
        exponent = self.rule.exponent(log_w, progress).astype(log_w.dtype)
        exponent = jnp.where(active, exponent, jnp.ones_like(exponent))
        dead = jnp.isneginf(log_w)
        return jnp.where(dead, -jnp.inf, exponent * jnp.where(dead, 0.0, log_w)), exponent


class HeuristicEntropic(Entropic):
    """Entropic annealing as published: what tempering takes from the weights is dropped.

    A heuristic: the law it samples is not the target, and no log evidence is reported (NaN). As
    published it resamples at every step: `resampler=Systematic(ess_threshold=1.0)`.
    """

    keeps_target: ClassVar[bool] = False
