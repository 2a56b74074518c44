"""Multinomial resampling (Gordon, Salmond and Smith, 1993)."""

import jax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .base import Resampler, split
from .cdf import invert, scaled_cdf


class Multinomial(Resampler):
    """Independent ancestors, each i with probability W[i].

    The highest variance of the six, and the only one whose slots are independent. Slots are
    exchangeable (unsorted). O(n log n).

    Conditional form: b is uniform over the slots, a[b] = retained, and the rest is independent.
    """

    def _draw(self, key: PRNGKeyArray, weights: Float[Array, " n"]) -> Int[Array, " n"]:
        uniforms = jax.random.uniform(key, weights.shape, weights.dtype)
        return invert(scaled_cdf(weights), uniforms)

    def _draw_conditional(
        self, key: PRNGKeyArray, weights: Float[Array, " n"], retained: Int[Array, ""]
    ) -> tuple[Int[Array, " n"], Int[Array, ""]]:
        key, key_position = split(key)
        position = jax.random.randint(key_position, (), 0, weights.shape[0], "int32")
        return self._draw(key, weights).at[position].set(retained), position
