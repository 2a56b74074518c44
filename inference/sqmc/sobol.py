"""Scrambled Sobol' points.

Sobol' (1967) with the direction numbers of Joe and Kuo (2008), as SciPy has them; scrambled by a
random triangular matrix and a digital shift (Matousek 1998, "On the L2-discrepancy for anchored
boxes", section 3).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt32

_BITS = 32


@functools.lru_cache(maxsize=64)
def _sobol(n: int, d: int) -> np.ndarray:
    """The first n points in d dimensions, in units of 2^-32 [n, d]."""
    from scipy.stats import qmc

    size = max(n - 1, 0).bit_length()
    points = qmc.Sobol(d, scramble=False, bits=_BITS).random_base2(size)[:n]
    return (points * 2.0**_BITS).astype(np.uint64).astype(np.uint32)


def scrambled_sobol(key: PRNGKeyArray, n: int, d: int) -> Float[Array, "n d"]:
    """The first n Sobol' points in (0, 1)^d, scrambled.

    Law: each point is uniform on the cube (on a grid of 2^-23 in each coordinate), so that averages
    over the points are unbiased; together they are as even as the Sobol' points, best where n is a
    power of two. The points are not independent of each other.
    """
    if d == 0:
        return jnp.zeros((n, 0))
    x = jnp.asarray(_sobol(n, d))
    # Of the first 2^m points only the m leading bits differ from zero.
    leading = max(max(n - 1, 0).bit_length(), 1)

    def words(axis):
        # By axis, so that more axes leave the first ones as they are.
        return jax.random.bits(jax.random.fold_in(key, axis), (leading + 1,), jnp.uint32)

    bits = jax.vmap(words)(jnp.arange(d)).T
    columns, y = bits[:leading], jnp.broadcast_to(bits[leading][None], x.shape)
    for j in range(leading):
        bit = np.uint32(1 << (_BITS - 1 - j))
        column = bit | (columns[j] & (bit - np.uint32(1)))
        y = y ^ jnp.where((x & bit) != 0, column[None], jnp.uint32(0))
    return _inside(y)


def _inside(bits: UInt32[Array, "n d"]) -> Float[Array, "n d"]:
    """Middles of cells of 2^-23: never 0 or 1 in any precision."""
    return ((bits >> np.uint32(9)).astype(float) + 0.5) * 2.0**-23
