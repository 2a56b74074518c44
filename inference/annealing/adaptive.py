"""Exponents chosen by conditional effective sample size.

Zhou, Johansen and Aston (2016), "Toward automatic model comparison: an adaptive sequential Monte
Carlo approach", section 3.3: CESS = N (sum_i W_i u_i)^2 / sum_i W_i u_i^2 for increments u.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .base import Annealing

_GRID = 65


class AdaptiveTempering(Annealing):
    """The potentials so far to the largest power beta <= 1 that keeps CESS >= cess N at each step.

    A step whose potentials are too sharp for any power takes the one of largest CESS. Unlike a ramp
    it reacts to the weights themselves; unlike `Entropic` before they have collapsed. Resolution
    1/4096. Law: the target is kept; the exponent at the end is 1.
    """

    cess: Float[Array, ""] = eqx.field(default=0.9, converter=lambda x: jnp.asarray(x, dtype=float))

    def priority(self, weighted, t, length):
        """See `Annealing.priority`."""
        dtype = weighted.log_weights.dtype
        limit = self.cess.astype(dtype) * weighted.log_weights.shape[0]

        def size(exponent):
            return conditional_ess(
                weighted.log_priority, _raised(weighted, exponent) - weighted.log_priority
            )

        def best(exponents):
            sizes = jax.vmap(size)(exponents)
            fits = sizes >= limit
            largest = jnp.where(fits, exponents, -jnp.inf)
            return jnp.where(
                jnp.any(fits), jnp.argmax(largest), jnp.argmax(jnp.nan_to_num(sizes, nan=-1.0))
            ), jnp.any(fits)

        coarse = jnp.linspace(0, 1, _GRID, dtype=dtype)
        at, fits = best(coarse)
        width = coarse[1] - coarse[0]
        fine = jnp.minimum(coarse[at] + width * coarse, 1)
        exponent = jnp.where(fits, fine[best(fine)[0]], coarse[at])
        exponent = jnp.where(t >= length, jnp.ones_like(exponent), exponent)
        return _raised(weighted, exponent), exponent


def conditional_ess(
    log_weights: Float[Array, "n"], log_increments: Float[Array, "n"]
) -> Float[Array, ""]:
    """N (sum W u)^2 / sum W u^2, between 0 and N; particles of weight zero do not count."""
    log_w = log_weights - jax.nn.logsumexp(log_weights)
    log_u = jnp.where(jnp.isneginf(log_w), -jnp.inf, log_increments)
    first, second = jax.nn.logsumexp(log_w + log_u), jax.nn.logsumexp(log_w + 2 * log_u)
    return log_weights.shape[0] * jnp.exp(2 * first - second)


def _raised(weighted, exponent):
    alive = ~jnp.isneginf(weighted.log_weights)
    potential = jnp.where(alive, weighted.log_potential, 0.0)
    return weighted.log_weights + (exponent - 1) * potential
