"""Srinivasan sampling process (Gerber, Chopin and Whiteley, 2019, section 3.1).

Particles enter in order. One of those seen so far, the carrier, holds an undecided fraction q of
an offspring, the others are decided. When particle k enters with fraction p, the two play: if
q + p < 1 one of them takes q + p and the other gets nothing; else one gets an offspring and the
other holds q + p - 1. The probabilities keep both expectations.

The fraction held after step k is that of the cumulative weight C[k], whoever holds it. So the
probability that k becomes the carrier depends on no earlier draw, all can be drawn at once, and
the carrier at any time is the last one to have become it: a cumulative maximum, no loop. Counts
are differences of floor(C), integers that sum to n without repair.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from .base import Resampler, split
from .cdf import expand, scaled_cdf


class SSP(Resampler):
    """Offspring counts n W[i] rounded down or up at random, negatively associated.

    As little noise as `Systematic`, and variance never above that of `Multinomial` whatever the
    order of the particles. Slots are sorted. O(n), parallel.

    Conditional form: the process is a martingale in the expected count of each particle, so its
    size-biased form is a Doob transform: from the retained particle's entry until it is decided,
    each outcome is tilted by its expected count after over before. b is uniform among its slots.
    """

    def _draw(self, key: PRNGKeyArray, weights: Float[Array, " n"]) -> Int[Array, " n"]:
        steps = _steps(scaled_cdf(weights))
        uniforms = jax.random.uniform(key, weights.shape, weights.dtype)
        return expand(_ends(steps, uniforms < steps.takes))

    def _draw_conditional(
        self, key: PRNGKeyArray, weights: Float[Array, " n"], retained: Int[Array, ""]
    ) -> tuple[Int[Array, " n"], Int[Array, ""]]:
        key, key_position = split(key)
        steps = _steps(scaled_cdf(weights))
        uniforms = jax.random.uniform(key, weights.shape, weights.dtype)
        ends = _ends(steps, _takes_given(steps, uniforms, retained))
        low = jnp.where(retained > 0, ends[jnp.maximum(retained - 1, 0)], 0)
        # A weight lost in the rounding of the cdf has no slot: it is then given the nearest one.
        low = jnp.minimum(low, weights.shape[0] - 1)
        high = jnp.maximum(ends[retained], low + 1)
        position = jax.random.randint(key_position, (), low, high, "int32")
        return expand(ends), position


class _Steps(NamedTuple):
    whole: Int[Array, " n"]  # offspring that particle k has for certain
    fraction: Float[Array, " n"]  # p, the fraction it enters with
    before: Float[Array, " n"]  # q, held by the carrier when k enters
    after: Float[Array, " n"]  # held by the carrier afterwards
    decides: Bool[Array, " n"]  # whether q + p >= 1: one of the two gets an offspring
    takes: Float[Array, " n"]  # probability that k becomes the carrier


def _steps(cdf: Float[Array, " n"]) -> _Steps:
    floor = jnp.floor(cdf)
    after = cdf - floor
    before = jnp.concatenate([jnp.zeros(1, cdf.dtype), after[:-1]])
    decides = after < before
    whole = jnp.diff(floor.astype(jnp.int32), prepend=jnp.zeros(1, jnp.int32))
    fraction = after - before + decides.astype(cdf.dtype)
    up = (before - after) / (1 - after)
    grow = (after - before) / jnp.where(after > 0, after, 1)
    alone = jnp.where(after > 0, 1.0, 0.0).astype(cdf.dtype)
    takes = jnp.where(decides, up, jnp.where(before > 0, grow, alone))
    return _Steps(whole - decides.astype(jnp.int32), fraction, before, after, decides, takes)


def _takes_given(
    steps: _Steps, uniforms: Float[Array, " n"], retained: Int[Array, ""]
) -> Bool[Array, " n"]:
    """Who becomes the carrier, size-biased by the offspring of the retained particle."""
    n = uniforms.shape[0]
    index = jnp.arange(n, dtype=jnp.int32)
    whole = steps.whole[retained].astype(uniforms.dtype)
    # Expected count of the retained particle before each step, if that step concerns it, ...
    mean = whole + jnp.where(index == retained, steps.fraction, steps.before)
    # ... and after it, if k becomes the carrier.
    tilted = whole + jnp.where(index == retained, steps.after, steps.decides.astype(uniforms.dtype))
    probability = steps.takes * tilted / jnp.where(mean > 0, mean, 1)
    takes = uniforms < steps.takes
    given = uniforms < probability
    enters = given[retained]
    leaves = jnp.min(jnp.where(given & (index > retained), index, n))
    concerned = (index == retained) | (enters & (index > retained) & (index <= leaves))
    return jnp.where(concerned, given, takes)


def _ends(steps: _Steps, takes: Bool[Array, " n"]) -> Int[Array, " n"]:
    """Cumulative offspring counts."""
    index = jnp.arange(takes.shape[0], dtype=jnp.int32)
    carrier = lax.cummax(jnp.where(takes, index, 0))
    previous = jnp.concatenate([jnp.zeros(1, jnp.int32), carrier[:-1]])
    winner = jnp.where(takes, previous, index)
    counts = steps.whole.at[winner].add(steps.decides.astype(jnp.int32))
    return lax.cumsum(counts)
