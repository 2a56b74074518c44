"""Systematic resampling (Carpenter, Clifford and Fearnhead, 1999)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .base import Resampler
from .cdf import invert_strata, scaled_cdf
from .stratified import retained_point


class Systematic(Resampler):
    """Slot j takes the ancestor at j + U in the cumulative weights n W, one U uniform on [0, 1).

    Offspring counts are n W[i] rounded down or up. The cheapest and in practice among the least
    noisy, but its variance depends on the order of the particles and can exceed that of
    `Multinomial`; `SSP` has the same counts and does not. Slots are sorted. O(n).

    Conditional form: a point is drawn uniformly in the retained particle's interval of the
    cumulative weights; it fixes b and the common offset.
    """

    def _draw(self, key: PRNGKeyArray, weights: Float[Array, " n"]) -> Int[Array, " n"]:
        offset = jax.random.uniform(key, (), weights.dtype)
        return invert_strata(scaled_cdf(weights), jnp.broadcast_to(offset, weights.shape))

    def _draw_conditional(
        self, key: PRNGKeyArray, weights: Float[Array, " n"], retained: Int[Array, ""]
    ) -> tuple[Int[Array, " n"], Int[Array, ""]]:
        cdf = scaled_cdf(weights)
        position, offset = retained_point(key, cdf, retained)
        return invert_strata(cdf, jnp.broadcast_to(offset, weights.shape)), position
