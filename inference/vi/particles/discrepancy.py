"""How far particles are from a target, or from other particles.

Kernelized Stein discrepancy: Liu, Lee and Jordan (2016), equation 8; Chwialkowski, Strathmann and
Gretton (2016). Maximum mean discrepancy: Gretton et al. (2012), "A kernel two-sample test".
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ....ppl.compiled import compiled
from ....ppl.partial import Choices
from ....ppl.target import Target, as_target
from ..guides.layout import Layout, layout
from .kernels import IMQ, RBF, RadialKernel, squared_distances


def stein_discrepancy(
    x: Float[Array, "n d"], scores: Float[Array, "n d"], kernel: RadialKernel
) -> Float[Array, ""]:
    """The squared discrepancy of particles with these scores: a V-statistic, never negative."""
    sq = squared_distances(x, x)
    h = kernel.scale(sq)
    f, df, ddf = kernel.derivatives(sq / h)
    own = jnp.sum(scores * x, axis=1)
    along = own[:, None] - scores @ x.T  # score_i . (x_i - x_j)
    size = x.shape[1]
    matrix = f * (scores @ scores.T) - (2.0 / h) * df * (along + along.T)
    matrix = matrix - 2.0 * size * df / h - 4.0 * ddf * (sq / h) / h
    return jnp.mean(matrix)


def ksd(choices: Choices, target: Any, kernel: RadialKernel | None = None) -> Float[Array, ""]:
    """The kernelized Stein discrepancy of equally weighted choices [n, ...] from a target.

    Zero in the limit of exact draws (about n^(-1/2) of them), in the coordinates of
    `biject_to`; the normalizer is not needed. Default kernel: IMQ of bandwidth 1. Errors as of
    `vi.guides.mean_field`.
    """
    target = as_target(target)
    return _ksd(choices, target, layout(target), kernel or IMQ(1.0))


@compiled
def _ksd(choices, target: Target, place: Layout, kernel: RadialKernel) -> Float[Array, ""]:
    x = jax.vmap(place.position)(choices)
    scores = jax.vmap(jax.grad(lambda z: place.log_density(target, z)))(x)
    return jnp.sqrt(jnp.maximum(stein_discrepancy(x, scores, kernel), 0.0))


@compiled
def mmd(x: Any, y: Any, kernel: RadialKernel = RBF()) -> Float[Array, ""]:  # noqa: B008
    """The maximum mean discrepancy between choices [n, ...] and [m, ...] (or arrays).

    Zero if equal in law as n and m grow; a V-statistic. Without a bandwidth that of `y`'s median.
    """
    x, y = (jax.vmap(lambda c: ravel_pytree(c)[0])(c) for c in (x, y))
    h = kernel.scale(squared_distances(y, y))

    def mean(a, b):
        return jnp.mean(kernel.profile(squared_distances(a, b) / h))

    return jnp.sqrt(jnp.maximum(mean(x, x) + mean(y, y) - 2.0 * mean(x, y), 0.0))
