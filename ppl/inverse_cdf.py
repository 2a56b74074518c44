"""Draws by inverting a cumulative sum, such that nothing of weight zero is ever drawn."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def inverse_cdf(weights: Float[Array, "*b n"], uniform: Float[Array, "*b"]) -> Int[Array, "*b"]:
    """The first index of positive weight whose cumulative weight exceeds uniform x total.

    Weights are non-negative, in any scale. The answer has positive weight even where rounding
    makes the cumulative sum end below its total or dip, and at uniform = 0; a row of zeros gives
    its last index.
    """
    cumulative = jnp.cumsum(weights, axis=-1)
    positive = weights > 0
    hit = positive & (cumulative > uniform[..., None] * cumulative[..., -1:])
    first = jnp.argmax(hit, axis=-1)
    last_positive = weights.shape[-1] - 1 - jnp.argmax(positive[..., ::-1], axis=-1)
    none = ~positive.any(-1)
    index = jnp.where(hit.any(-1), first, jnp.where(none, weights.shape[-1] - 1, last_positive))
    return index.astype(jnp.int32)
