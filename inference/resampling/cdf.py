"""Inverse-CDF sampling that cannot select a particle of weight zero.

All schemes work on the cumulative weights scaled to [0, n], of which a floating-point cumulative
sum gives only a rough version: a parallel prefix sum need not be monotone, it may move at a
weight of zero, and its last entry is not its total. `scaled_cdf` repairs the three exactly, and
all that follows compares its entries and counts integers.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

_LARGE = 4096


def _prefix_sum(x: Float[Array, " n"]) -> Float[Array, " n"]:
    # On a CPU the tree is 4x faster at n = 16,384 but slower to compile; no gain when small.
    return lax.associative_scan(jnp.add, x) if x.shape[0] > _LARGE else lax.cumsum(x)


def _prefix_max(x: Float[Array, " n"]) -> Float[Array, " n"]:
    return lax.associative_scan(jnp.maximum, x) if x.shape[0] > _LARGE else lax.cummax(x)


def scaled_cdf(weights: Float[Array, " n"]) -> Float[Array, " n"]:
    """Cumulative weights scaled to end at n, exact where exactness matters.

    For weights >= 0, not all zero, the result C is nondecreasing, C[i] = C[i - 1] (with
    C[-1] = 0) wherever weights[i] = 0, and C = n from the last positive weight on, all exactly.
    If all weights are zero it is zero.
    """
    n = weights.shape[0]
    positive = weights > 0
    sums = jnp.where(positive, _prefix_sum(weights), 0)
    total = jnp.max(sums)
    scaled = jnp.where(sums < total, jnp.minimum(sums * (n / total), n), n)
    return _prefix_max(jnp.where(positive, scaled, 0))


def interval(
    cdf: Float[Array, " n"], index: Int[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The part [low, high) of [0, n) that belongs to one particle."""
    return jnp.where(index > 0, cdf[jnp.maximum(index - 1, 0)], 0), cdf[index]


def invert(cdf: Float[Array, " n"], uniforms: Float[Array, " m"]) -> Int[Array, " m"]:
    """The first index i with cdf[i] > n u, for each u in [0, 1] in any order."""
    n = cdf.shape[0]
    points = jnp.minimum(uniforms * n, np.nextafter(np.array(n, cdf.dtype), 0, dtype=cdf.dtype))
    return jnp.searchsorted(cdf, points, side="right").astype(jnp.int32)


def invert_strata(cdf: Float[Array, " n"], offsets: Float[Array, " n"]) -> Int[Array, " n"]:
    """The first index i with cdf[i] > j + offsets[j], for each stratum j, in linear time.

    Offsets are in [0, 1]. The number of points below cdf[i] needs only the offset of the stratum
    in which it lies; see `expand`.
    """
    n = cdf.shape[0]
    whole = jnp.floor(cdf)
    stratum = whole.astype(jnp.int32)
    below = offsets[jnp.minimum(stratum, n - 1)] < cdf - whole
    return expand(stratum + below.astype(jnp.int32))


def expand(ends: Int[Array, " n"]) -> Int[Array, " n"]:
    """Ancestors of slots 0..n-1, where particle i has the slots from ends[i - 1] to ends[i] - 1.

    `ends` is nondecreasing within [0, n]; slots from ends[-1] on get n. Counting by scatter
    beats a binary search: by a fifth for one population, by 2-3 times under `vmap`.
    """
    n = ends.shape[0]
    counts = jnp.zeros(n + 1, jnp.int32).at[ends].add(1)
    return lax.cumsum(counts)[:n]
