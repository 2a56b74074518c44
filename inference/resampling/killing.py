"""Killing resampling (Del Moral, 2004, section 2.5.2; Gerber, Chopin and Whiteley, 2019)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .base import Resampler, split
from .cdf import invert, scaled_cdf


class Killing(Resampler):
    """Particle j keeps its slot with probability W[j] / max W; else the slot is drawn from W.

    Most particles stay where they are when weights are nearly equal, so that few are copied.
    Slots are neither sorted nor exchangeable: a survivor stays in its own. O(n log n).

    Conditional form: with probability 1 / (n max W) the retained particle survives in its own
    slot, b = retained; else slot b, with probability proportional to 1 - W[b] / max W, is
    killed and given to it. The rest is unconditional.
    """

    def _draw(self, key: PRNGKeyArray, weights: Float[Array, " n"]) -> Int[Array, " n"]:
        key_survive, key_redraw = split(key)
        survives = jax.random.uniform(key_survive, weights.shape, weights.dtype) < weights
        redrawn = invert(
            scaled_cdf(weights), jax.random.uniform(key_redraw, weights.shape, weights.dtype)
        )
        return jnp.where(survives, jnp.arange(weights.shape[0], dtype=jnp.int32), redrawn)

    def _draw_conditional(
        self, key: PRNGKeyArray, weights: Float[Array, " n"], retained: Int[Array, ""]
    ) -> tuple[Int[Array, " n"], Int[Array, ""]]:
        key, key_survive, key_killed = split(key, 3)
        survives = jax.random.uniform(key_survive, (), weights.dtype) < jnp.mean(weights)
        killed = invert(
            scaled_cdf(1 - weights), jax.random.uniform(key_killed, (1,), weights.dtype)
        )[0]
        position = jnp.where(survives, retained, killed)
        return self._draw(key, weights).at[position].set(retained), position
