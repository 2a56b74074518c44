"""Draws by inverting a cumulative sum, such that nothing of weight zero is ever drawn."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt


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


def inverse_counts(weights: list[Float[Array, "*b"]], bits: UInt[Array, "*b"]) -> Int[Array, "*b"]:
    """The index of a word of random bits among a few weights, elementwise: no axis to reduce.

    The largest weight is 1. In whole words of 2^bits each index has its share rounded to the
    nearest, the first largest what is left: a weight of zero is never drawn, one of probability p
    at its rate up to a relative 2^-24 + 2^-33 / p (for 32 bits). Where all are zero it is 0.
    """
    scale = 2.0 ** jnp.iinfo(bits.dtype).bits / sum(weights[1:], weights[0])
    index = jnp.zeros(bits.shape, jnp.int32)
    for j in reversed(range(len(weights))):
        index = jnp.where(weights[j] >= 1, j, index)
    ends, end = [], jnp.zeros_like(bits)
    for j, weight in enumerate(weights):
        counted = (weight > 0) & (index != j)
        count = jnp.where(counted, weight * scale + 0.5, 0.0)
        end = end + count.astype(bits.dtype)
        ends.append(end)
    for j in reversed(range(len(weights))):
        index = jnp.where(bits < ends[j], j, index)
    return index
