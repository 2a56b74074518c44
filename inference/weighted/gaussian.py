"""Gaussian families of densities, fitted to weighted draws."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray


class Normal(eqx.Module):
    """A Gaussian density by its mean, and the Cholesky factor of its covariance and its inverse."""

    mean: Float[Array, "*batch d"]
    factor: Float[Array, "*batch d d"]
    whiten: Float[Array, "*batch d d"]

    @staticmethod
    def of(mean: Float[Array, "d"], cov: Float[Array, "d d"]) -> "Normal":
        """From mean and covariance."""
        factor = jnp.linalg.cholesky(cov)
        # One solve here instead of one a point: many small solves are slow.
        eye = jnp.eye(mean.shape[0], dtype=factor.dtype)
        return Normal(mean, factor, solve_triangular(factor, eye, lower=True))

    def log_density(self, x: Float[Array, "d"]) -> Float[Array, ""]:
        """Log density at x, nats."""
        whitened = self.whiten @ (x - self.mean)
        log_det = jnp.sum(jnp.log(jnp.diagonal(self.whiten)))
        return log_det - 0.5 * jnp.sum(whitened**2) - 0.5 * x.shape[0] * jnp.log(2 * jnp.pi)

    def sample(self, key: PRNGKeyArray) -> Float[Array, "d"]:
        """One draw."""
        return self.mean + self.factor @ jax.random.normal(key, self.mean.shape, self.mean.dtype)


class Gaussian(eqx.Module):
    """The family of all Gaussians; with `diagonal` of those with independent coordinates.

    `fit` is the maximum of sum_i w_i log g(x_i), the cross-entropy minimizer. `jitter`, relative to
    the largest variance, keeps a covariance of few draws positive definite.
    """

    diagonal: bool = eqx.field(static=True, default=False)
    jitter: Float[Array, ""] = eqx.field(
        default=1e-6, converter=lambda x: jnp.asarray(x, dtype=float)
    )

    def fit(self, x: Float[Array, "n d"], weights: Float[Array, "n"]) -> Normal:
        """The Gaussian of the weighted mean and covariance; of equal weights if all are zero."""
        weights = jnp.where(jnp.sum(weights) > 0, weights, jnp.ones_like(weights))
        weights = (weights / jnp.sum(weights))[:, None]
        mean = jnp.sum(weights * x, axis=0)
        centred = x - mean[None, :]
        cov = centred.T @ (weights * centred)
        if self.diagonal:
            cov = jnp.diag(jnp.diagonal(cov))
        scale: ArrayLike = jnp.maximum(jnp.max(jnp.diagonal(cov)), jnp.finfo(cov.dtype).tiny)
        # An eigenvalue may be rounded below zero by about eps times the largest.
        floor = jnp.maximum(self.jitter.astype(cov.dtype), 8 * jnp.finfo(cov.dtype).eps)
        return Normal.of(mean, cov + floor * scale * jnp.eye(x.shape[1], dtype=cov.dtype))
