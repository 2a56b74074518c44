"""Stratified resampling (Kitagawa, 1996)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .base import Resampler, split
from .cdf import interval, invert_strata, scaled_cdf


class Stratified(Resampler):
    """Slot j takes the ancestor at j + U[j] in the cumulative weights n W, U[j] uniform on [0, 1).

    The U[j] are independent. Variance never above that of `Multinomial`; offspring counts are
    within 2 of n W. Slots are sorted. O(n).

    Conditional form: a point is drawn uniformly in the retained particle's interval of the
    cumulative weights; it fixes b and U[b], and the other offsets are unconditional.
    """

    def _draw(self, key: PRNGKeyArray, weights: Float[Array, " n"]) -> Int[Array, " n"]:
        offsets = jax.random.uniform(key, weights.shape, weights.dtype)
        return invert_strata(scaled_cdf(weights), offsets)

    def _draw_conditional(
        self, key: PRNGKeyArray, weights: Float[Array, " n"], retained: Int[Array, ""]
    ) -> tuple[Int[Array, " n"], Int[Array, ""]]:
        key, key_point = split(key)
        cdf = scaled_cdf(weights)
        position, offset = retained_point(key_point, cdf, retained)
        offsets = jax.random.uniform(key, weights.shape, weights.dtype)
        return invert_strata(cdf, offsets.at[position].set(offset)), position


def retained_point(
    key: PRNGKeyArray, cdf: Float[Array, " n"], retained: Int[Array, ""]
) -> tuple[Int[Array, ""], Float[Array, ""]]:
    """Stratum and offset of a uniform point in the retained particle's interval."""
    low, high = interval(cdf, retained)
    point = low + jax.random.uniform(key, (), cdf.dtype) * (high - low)
    point = jnp.minimum(point, jnp.nextafter(high, low))
    stratum = jnp.minimum(jnp.floor(point), cdf.shape[0] - 1)
    return stratum.astype(jnp.int32), point - stratum
