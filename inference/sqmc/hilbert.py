"""Places along Hilbert's curve: points that are near each other on it are near in space.

Skilling (2004), "Programming the Hilbert curve", the transformation from axes to the transposed
index.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

_WORD = 32


def hilbert_index(cells: UInt32[Array, "n d"], bits: int) -> UInt32[Array, " n"]:
    """Index of each cell of a grid of 2^bits cells a side; d x bits is at most 32."""
    d = cells.shape[1]
    if d * bits > _WORD or bits < 1:
        raise ValueError(f"an index has {_WORD} bits, but {d} axes of {bits} bits were asked for")
    x = [cells[:, j] for j in range(d)]
    for level in range(bits - 1, 0, -1):
        q = np.uint32(1 << level)
        p = q - np.uint32(1)
        for j in range(d):
            high = (x[j] & q) != 0
            swap = jnp.where(high, jnp.uint32(0), (x[0] ^ x[j]) & p)
            x[j] = x[j] ^ swap
            x[0] = jnp.where(high, x[0] ^ p, x[0] ^ swap) if j else jnp.where(high, x[0] ^ p, x[0])
    for j in range(1, d):
        x[j] = x[j] ^ x[j - 1]
    fold = jnp.zeros_like(x[0])
    for level in range(bits - 1, 0, -1):
        q = np.uint32(1 << level)
        fold = jnp.where((x[d - 1] & q) != 0, fold ^ (q - np.uint32(1)), fold)
    index = jnp.zeros_like(x[0])
    for level in range(bits - 1, -1, -1):
        for j in range(d):
            bit = ((x[j] ^ fold) >> np.uint32(level)) & np.uint32(1)
            index = (index << np.uint32(1)) | bit
    return index


def curve_order(x: Float[Array, "n d"], weights: Float[Array, " n"]) -> Int[Array, " n"]:
    """The particles in the order of the curve; in one dimension from left to right.

    Each axis is centred and scaled by its weighted mean and deviation and squashed to (0, 1) by the
    logistic function (Gerber and Chopin 2015, section 5.1).
    """
    if x.shape[1] <= 1:
        return jnp.argsort(x[:, 0] if x.shape[1] else jnp.zeros(x.shape[0])).astype(jnp.int32)
    w = weights / jnp.maximum(jnp.sum(weights), jnp.finfo(weights.dtype).tiny)
    # A dead particle may be anywhere, and counts nowhere.
    x = jnp.where((w[:, None] > 0) & jnp.isfinite(x), x, jnp.zeros_like(x))
    mean = jnp.sum(w[:, None] * x, axis=0)
    spread = jnp.sqrt(jnp.sum(w[:, None] * (x - mean[None]) ** 2, axis=0))
    u = jax.nn.sigmoid((x - mean[None]) / jnp.where(spread > 0, spread, 1)[None])
    bits = min(16, _WORD // x.shape[1])
    cells = jnp.clip(jnp.floor(u * 2.0**bits), 0, 2.0**bits - 1).astype(jnp.uint32)
    return jnp.argsort(hilbert_index(cells, bits)).astype(jnp.int32)
