"""The best mixture of an unbiased and a biased gradient estimator, in closed form (BVPO).

Zhu et al. (2025), "From noisy traces to stable gradients: Bias-variance optimized preference
optimization": gradients with a sampled reasoning trace are unbiased and noisy, those without a
trace are biased and steady. The weight here is derived anew for the mean of n pairs.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree


def mix_estimators(g1: PyTree, g2: PyTree) -> tuple[PyTree, Float[Array, ""]]:
    """Alpha mean(g1) + (1 - alpha) mean(g2), with the alpha of least mean squared error.

    With errors e1, e2 of the two means it is alpha = (E|e2|^2 - E<e1, e2>) / E|e1 - e2|^2. Here
    E|e2|^2 is squared bias plus variance, the bias E[g2 - g1] since g1 is unbiased; all are
    estimated from the n pairs, the squared bias without its own bias, and alpha is kept in [0, 1].
    The mixture is biased where g2 is, by (1 - alpha) of it, which vanishes as n grows.

    Args:
        g1: n independent unbiased estimates, a pytree of [n, ...], n at least 2.
        g2: n estimates that are paired with them (may be correlated), biased.

    Returns:
        The mixture and alpha, of which no gradient is taken.
    """
    flat1, flat2 = _flat(g1), _flat(g2)
    n = flat1.shape[0]
    if n < 2 or flat1.shape != flat2.shape:
        raise ValueError(
            f"mixing needs pairs of estimates, at least two: got {flat1.shape} and {flat2.shape}"
        )
    mean1, mean2 = flat1.mean(0), flat2.mean(0)
    dev1, dev2 = flat1 - mean1[None], flat2 - mean2[None]
    gap = jnp.sum((dev2 - dev1) ** 2) / (n - 1) / n  # variance of the difference of the means
    bias = jnp.maximum(jnp.sum((mean2 - mean1) ** 2) - gap, 0.0)
    own = jnp.sum(dev2 * (dev2 - dev1)) / (n - 1) / n  # variance of mean2 less covariance
    distance = bias + gap
    alpha = jnp.where(distance > 0, (bias + own) / jnp.where(distance > 0, distance, 1.0), 1.0)
    alpha = jax.lax.stop_gradient(jnp.clip(alpha, 0.0, 1.0))

    def mixed(a, b):
        weight = alpha.astype(a.dtype)
        return weight * a.mean(0) + (1 - weight) * b.mean(0)

    return jax.tree.map(mixed, g1, g2), alpha


def _flat(g: PyTree) -> Float[Array, "n d"]:
    leaves = jax.tree.leaves(g)
    return jnp.concatenate([x.reshape(x.shape[0], -1) for x in leaves], axis=1)
