"""Normal-inverse-Wishart laws in closed form, and few-shot learning with one as its top.

Gelman et al. (2013), "Bayesian data analysis", section 3.6 (conjugate updates). The hierarchy:
Kim and Hospedales (2024), "A hierarchical Bayesian model for few-shot meta learning", section 3: a
global law of task parameters, whose posterior is NIW, and local posteriors in closed form given it,
so that none is stored. Theirs approximates a network's loss by a quadratic; here tasks are linear
regressions, for which the local step is exact, and the coordinate ascent that of Bishop (2006),
section 10.1.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import digamma, multigammaln
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray


class NormalInverseWishart(eqx.Module):
    """Sigma ~ IW(scale, freedom), mu | Sigma ~ N(mean, Sigma / count), in R^d; freedom > d - 1."""

    mean: Float[Array, "*b d"]
    count: Float[Array, "*b"]
    scale: Float[Array, "*b d d"]
    freedom: Float[Array, "*b"]

    def __init__(self, mean: Any, count: Any, scale: Any, freedom: Any):
        self.mean, self.count = jnp.asarray(mean, dtype=float), jnp.asarray(count, dtype=float)
        self.scale, self.freedom = (
            jnp.asarray(scale, dtype=float),
            jnp.asarray(freedom, dtype=float),
        )

    def given(
        self, n: ArrayLike, total: Float[Array, "d"], square: Float[Array, "d d"]
    ) -> "NormalInverseWishart":
        """The posterior after n vectors, of which the sum and the sum of outer products are told.

        These may be expectations: then it is the optimal factor of a variational posterior.
        """
        n = jnp.asarray(n, dtype=float)
        count = self.count + n
        mean = (self.count * self.mean + total) / count
        spread = self.count * jnp.outer(self.mean, self.mean) - count * jnp.outer(mean, mean)
        return NormalInverseWishart(mean, count, self.scale + square + spread, self.freedom + n)

    def posterior(self, xs: Float[Array, "n d"]) -> "NormalInverseWishart":
        """After these vectors."""
        return self.given(xs.shape[0], jnp.sum(xs, axis=0), xs.T @ xs)

    def log_normalizer(self) -> Float[Array, ""]:
        """Log of the integral of the unnormalized density (powers of 2 pi of the mean included)."""
        d = self.mean.shape[-1]
        log_det = jnp.linalg.slogdet(self.scale)[1]
        return (
            multigammaln(self.freedom / 2, d)
            + 0.5 * self.freedom * (d * math.log(2) - log_det)
            + 0.5 * d * (math.log(2 * math.pi) - jnp.log(self.count))
        )

    def log_evidence(self, xs: Float[Array, "n d"]) -> Float[Array, ""]:
        """Log marginal density of vectors, nats."""
        n, d = xs.shape
        normal = 0.5 * n * d * math.log(2 * math.pi)
        return self.posterior(xs).log_normalizer() - self.log_normalizer() - normal

    def log_predictive(self, x: Float[Array, "d"]) -> Float[Array, ""]:
        """Log density of one vector, nats: multivariate t."""
        return self.log_evidence(x[None])

    def precision(self) -> Float[Array, "d d"]:
        """E[Sigma^-1]."""
        return self.freedom * jnp.linalg.inv(self.scale)

    def expected_log_density(self, mean: Array, covariance: Array) -> Float[Array, ""]:
        """E log N(x; mu, Sigma) over this law and x ~ N(mean, covariance), nats."""
        d = self.mean.shape[-1]
        steps = jnp.arange(d, dtype=self.freedom.dtype)
        log_det = jnp.sum(digamma((self.freedom - steps) / 2)) + d * math.log(2)
        log_det = log_det - jnp.linalg.slogdet(self.scale)[1]
        gap = mean - self.mean
        square = jnp.sum(self.precision() * (jnp.outer(gap, gap) + covariance)) + d / self.count
        return 0.5 * (log_det - d * math.log(2 * math.pi) - square)

    def kl(self, other: "NormalInverseWishart") -> Float[Array, ""]:
        """KL(self || other), nats."""
        # Of exponential families: expected statistics against natural parameters.
        n = self.freedom - other.freedom
        gap = self.mean - other.mean
        d = self.mean.shape[-1]
        steps = jnp.arange(d, dtype=self.freedom.dtype)
        log_det = jnp.sum(digamma((self.freedom - steps) / 2)) + d * math.log(2)
        log_det = log_det - jnp.linalg.slogdet(self.scale)[1]  # E log |Sigma^-1|
        precision = self.precision()
        wishart = 0.5 * (n * log_det - jnp.sum(precision * (self.scale - other.scale)))
        normal = 0.5 * (
            d * (jnp.log(self.count / other.count) - 1 + other.count / self.count)
            + other.count * gap @ precision @ gap
        )
        return wishart + normal + _wishart_normalizer(other) - _wishart_normalizer(self)

    def sample(self, key: PRNGKeyArray) -> tuple[Float[Array, "d"], Float[Array, "d d"]]:
        """One draw (mu, Sigma); Bartlett's decomposition."""
        d = self.mean.shape[-1]
        key_diagonal, key_lower, key_mean = jax.random.split(key, 3)
        steps = jnp.arange(d, dtype=self.freedom.dtype)
        chi = jnp.sqrt(2 * jax.random.gamma(key_diagonal, (self.freedom - steps) / 2))
        lower = jnp.tril(jax.random.normal(key_lower, (d, d), self.mean.dtype), -1) + jnp.diag(chi)
        factor = jnp.linalg.cholesky(self.scale)
        root = jax.scipy.linalg.solve_triangular(lower, factor.T, lower=True).T
        noise = jax.random.normal(key_mean, (d,), self.mean.dtype)
        return self.mean + root @ noise / jnp.sqrt(self.count), root @ root.T


class FewShot(eqx.Module):
    """What `few_shot` learned: the global law of task parameters, and how the bound rose.

    - `posterior`: of the mean and covariance of tasks.
    - `bound` [rounds]: lower bounds of the log evidence of all episodes, nats.
    """

    posterior: NormalInverseWishart
    bound: Float[Array, "rounds"]
    noise: Float[Array, ""]

    def adapt(
        self, x: Float[Array, "n d"], y: Float[Array, "n"]
    ) -> tuple[Float[Array, "d"], Float[Array, "d d"]]:
        """Mean and covariance of a new task's parameters after its few examples: closed form."""
        return _local(self.posterior, x, y, self.noise)

    def predict(
        self, x: Float[Array, "n d"], y: Float[Array, "n"], query: Float[Array, "m d"]
    ) -> tuple[Float[Array, "m"], Float[Array, "m"]]:
        """Mean and variance of the responses at queries of that task."""
        mean, covariance = self.adapt(x, y)
        return query @ mean, jnp.sum((query @ covariance) * query, axis=1) + self.noise**2


def few_shot(
    prior: NormalInverseWishart,
    x: Float[Array, "episodes n d"],
    y: Float[Array, "episodes n"],
    noise: ArrayLike,
    rounds: int = 50,
) -> FewShot:
    """Learn the law of tasks from episodes y = x theta + N(0, noise^2), theta ~ N(mu, Sigma).

    Coordinate ascent on q(mu, Sigma) prod q(theta_i): local posteriors are Gaussian, the global one
    NIW, each optimal given the other, so that the bound never falls. The mean field is not exact:
    the global posterior is too narrow, less so the better episodes tell their parameters.
    """
    deviation = jnp.asarray(noise, dtype=float)

    def one_round(law, _):
        means, covariances = jax.vmap(lambda a, b: _local(law, a, b, deviation))(x, y)
        square = means.T @ means + jnp.sum(covariances, axis=0)
        new = prior.given(x.shape[0], jnp.sum(means, axis=0), square)
        return new, _bound(prior, new, x, y, deviation, means, covariances)

    law, bounds = jax.lax.scan(one_round, prior, None, rounds)
    return FewShot(law, bounds, deviation)


def _local(law, x, y, noise):
    precision = law.precision()
    covariance = jnp.linalg.inv(precision + x.T @ x / noise**2)
    return covariance @ (precision @ law.mean + x.T @ y / noise**2), covariance


def _bound(prior, law, x, y, noise, means, covariances):
    def episode(x, y, mean, covariance):
        gap = y - x @ mean
        square = gap @ gap + jnp.sum((x @ covariance) * x)
        fit = -0.5 * square / noise**2 - y.shape[0] * (jnp.log(noise) + 0.5 * math.log(2 * math.pi))
        d = mean.shape[0]
        entropy = 0.5 * (d * (1 + math.log(2 * math.pi)) + jnp.linalg.slogdet(covariance)[1])
        return fit + law.expected_log_density(mean, covariance) + entropy

    return jnp.sum(jax.vmap(episode)(x, y, means, covariances)) - law.kl(prior)


def _wishart_normalizer(law: NormalInverseWishart) -> Array:
    d = law.mean.shape[-1]
    log_det = jnp.linalg.slogdet(law.scale)[1]
    return multigammaln(law.freedom / 2, d) + 0.5 * law.freedom * (d * math.log(2) - log_det)
