"""Residual resampling (Liu and Chen, 1998)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .base import Resampler, split
from .cdf import expand, invert, scaled_cdf


class Residual(Resampler):
    """Particle i gets floor(n W[i]) copies; the slots left over are drawn from what remains.

    The R left-over slots are independent, each i with probability (n W[i] - floor(n W[i])) / R.
    Variance never above that of `Multinomial`. Slots are sorted up to the last R, which are
    exchangeable. O(n log n).

    Conditional form: with probability floor(n W) / (n W) at the retained particle, b is uniform
    among its copies; else one of the R slots, uniformly, is given to it. The rest is
    unconditional.
    """

    def _draw(self, key: PRNGKeyArray, weights: Float[Array, " n"]) -> Int[Array, " n"]:
        return _fill(key, weights, _plan(weights))

    def _draw_conditional(
        self, key: PRNGKeyArray, weights: Float[Array, " n"], retained: Int[Array, ""]
    ) -> tuple[Int[Array, " n"], Int[Array, ""]]:
        key, key_kind, key_copy, key_free = split(key, 4)
        n = weights.shape[0]
        plan = _plan(weights)
        mean = plan.copies[retained].astype(weights.dtype) + plan.remainders[retained]
        kind = jax.random.uniform(key_kind, (), weights.dtype) * mean
        end = plan.ends[retained]
        start = end - plan.copies[retained]
        copy = jax.random.randint(key_copy, (), start, jnp.maximum(end, start + 1), "int32")
        # One slot at least: with R = 0 in floating point, a tiny remainder still needs a place.
        free = jax.random.randint(key_free, (), jnp.minimum(plan.ends[-1], n - 1), n, "int32")
        is_copy = kind < plan.copies[retained].astype(weights.dtype)
        position = jnp.where(is_copy, copy, free)
        return _fill(key, weights, plan).at[position].set(retained), position


class _Plan(NamedTuple):
    copies: Int[Array, " n"]
    ends: Int[Array, " n"]
    remainders: Float[Array, " n"]


def _plan(weights: Float[Array, " n"]) -> _Plan:
    n = weights.shape[0]
    means = weights * (n / jnp.sum(weights))
    copies = jnp.floor(means)
    ends = jnp.minimum(lax.cumsum(copies.astype(jnp.int32)), n)
    return _Plan(jnp.diff(ends, prepend=jnp.zeros(1, ends.dtype)), ends, means - copies)


def _fill(key: PRNGKeyArray, weights: Float[Array, " n"], plan: _Plan) -> Int[Array, " n"]:
    left = jnp.where(jnp.any(plan.remainders > 0), plan.remainders, weights)
    drawn = invert(scaled_cdf(left), jax.random.uniform(key, weights.shape, weights.dtype))
    slots = jnp.arange(weights.shape[0], dtype=jnp.int32)
    return jnp.where(slots < plan.ends[-1], expand(plan.ends), drawn)
