"""Changepoints online: the exact posterior of the current run's length, one update a datum.

Adams and MacKay (2007), "Bayesian online changepoint detection", section 2 (the recursion). Its
robust form: Altamirano, Briol and Knoblauch (2023), "Robust and scalable Bayesian online
changepoint detection", sections 3 and 4: the posterior within a run is a generalized one, its loss
the diffusion score matching

    J(eta; x) = m(x)^2 s(x)^2 + 2 d/dx (m(x)^2 s(x)),     s = d/dx log p(x | eta)

which is quadratic in natural parameters eta, so that exp(-omega sum_t J) times a Gaussian is
Gaussian: closed updates, and a weight m that falls with |x| bounds what an outlier can do.
"""

import abc
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln
from jaxtyping import Array, ArrayLike, Float, PyTree

_NODES, _SPAN = 48, 6.0


class RunModel(eqx.Module):
    """What the data of one run are like: statistics that start, take a datum, and predict one."""

    @abc.abstractmethod
    def start(self) -> PyTree:
        """Statistics of no data."""

    @abc.abstractmethod
    def update(self, statistics: PyTree, x: Float[Array, ""]) -> PyTree:
        """With one more datum."""

    @abc.abstractmethod
    def log_predictive(self, statistics: PyTree, x: Float[Array, ""]) -> Float[Array, ""]:
        """Log density of the next datum, nats."""


class NormalRun(RunModel):
    """x ~ N(mu, s2) with 1/s2 ~ Gamma(shape, rate) and mu | s2 ~ N(mean, s2 / count): Student's t.

    Exact Bayes: Murphy (2007), "Conjugate Bayesian analysis of the Gaussian distribution", section
    3.
    """

    mean: Float[Array, ""]
    count: Float[Array, ""]
    shape: Float[Array, ""]
    rate: Float[Array, ""]

    def __init__(
        self,
        mean: ArrayLike = 0.0,
        count: ArrayLike = 1.0,
        shape: ArrayLike = 1.0,
        rate: ArrayLike = 1.0,
    ):
        self.mean, self.count, self.shape, self.rate = _floats(mean, count, shape, rate)

    def start(self) -> PyTree:
        """Mean, count, shape, rate."""
        return self.mean, self.count, self.shape, self.rate

    def update(self, statistics: PyTree, x: Float[Array, ""]) -> PyTree:
        """See `RunModel`."""
        mean, count, shape, rate = statistics
        rate = rate + count * (x - mean) ** 2 / (2 * (count + 1))
        return (count * mean + x) / (count + 1), count + 1, shape + 0.5, rate

    def log_predictive(self, statistics: PyTree, x: Float[Array, ""]) -> Float[Array, ""]:
        """Student's t with 2 shape degrees of freedom."""
        mean, count, shape, rate = statistics
        square = rate * (count + 1) / (shape * count)
        z = (x - mean) ** 2 / square
        constant = (
            gammaln(shape + 0.5) - gammaln(shape) - 0.5 * jnp.log(2 * math.pi * shape * square)
        )
        return constant - (shape + 0.5) * jnp.log1p(z / (2 * shape))


class RobustNormalRun(RunModel):
    """x ~ N(eta_1 / eta_2, 1 / eta_2), learned by diffusion score matching; eta ~ N, eta_2 > 0.

    A generalized posterior: it is not Bayes' for a likelihood, and `omega` sets how fast it learns.
    The weight is m(x)^2 = 1 / (1 + ((x - centre) / scale)^2). The predictive integrates eta_1 in
    closed form and eta_2 by quadrature (48 nodes).

    Args:
        mean: of eta a priori, [2]: mean over variance, and precision.
        covariance: of eta a priori, [2, 2].
        omega: learning rate; 1/2 would learn a mean in unit variance at Bayes' rate.
        centre: where data count fully.
        scale: so far from there they count half.
    """

    mean: Float[Array, "2"]
    covariance: Float[Array, "2 2"]
    omega: Float[Array, ""]
    centre: Float[Array, ""]
    scale: Float[Array, ""]

    def __init__(
        self,
        mean: Any = (0.0, 1.0),
        covariance: Any = ((4.0, 0.0), (0.0, 1.0)),
        omega: ArrayLike = 0.2,
        centre: ArrayLike = 0.0,
        scale: ArrayLike = 4.0,
    ):
        self.mean, self.covariance = _floats(mean, covariance)
        self.omega, self.centre, self.scale = _floats(omega, centre, scale)

    def start(self) -> PyTree:
        """Precision of eta, and precision times mean."""
        precision = jnp.linalg.inv(self.covariance)
        return precision, precision @ self.mean

    def update(self, statistics: PyTree, x: Float[Array, ""]) -> PyTree:
        """See `RunModel`."""
        precision, shift = statistics
        gap = (x - self.centre) / self.scale
        square = 1 / (1 + gap**2)
        slope = -2 * gap * square**2 / self.scale
        gradient = jnp.stack([jnp.ones_like(x), -x])
        linear = slope * gradient + square * jnp.array([0.0, -1.0], x.dtype)
        precision = precision + 2 * self.omega * square * jnp.outer(gradient, gradient)
        return precision, shift - 2 * self.omega * linear

    def log_predictive(self, statistics: PyTree, x: Float[Array, ""]) -> Float[Array, ""]:
        """A mixture over nodes of eta_2 of the normal laws that eta_1 leaves."""
        precision, shift = statistics
        covariance = jnp.linalg.inv(precision)
        mean = covariance @ shift
        spread = jnp.sqrt(covariance[1, 1])
        low = jnp.maximum(mean[1] - _SPAN * spread, 0.0)
        high = jnp.maximum(mean[1] + _SPAN * spread, low + spread)
        node, weight = np.polynomial.legendre.leggauss(_NODES)
        eta = low + (high - low) * jnp.asarray((node + 1) / 2, x.dtype)
        log_weight = jnp.log(jnp.asarray(weight, x.dtype)) - 0.5 * ((eta - mean[1]) / spread) ** 2
        slope = covariance[0, 1] / covariance[1, 1]
        given = mean[0] + slope * (eta - mean[1])
        left = covariance[0, 0] - slope * covariance[0, 1]
        variance = 1 / eta + left / eta**2
        log_p = -0.5 * (x - given / eta) ** 2 / variance - 0.5 * jnp.log(2 * math.pi * variance)
        return jax.nn.logsumexp(log_weight + log_p) - jax.nn.logsumexp(log_weight)


class RunLengths(eqx.Module):
    """What is known of runs as data come.

    - `log_posterior` [t, r]: log probability, given data up to x_t, that r data before x_t belong
      to its run; r = 0 says that a run starts at t.
    - `log_predictive` [t]: log density of x_t given those before it, nats; summed, log evidence.
    """

    log_posterior: Float[Array, "t r"]
    log_predictive: Float[Array, "t"]

    @property
    def log_evidence(self) -> Float[Array, ""]:
        """Of all data, nats (of the generalized posterior's predictives: prequential)."""
        return jnp.sum(self.log_predictive)

    def started(self, delay: int = 0) -> Float[Array, "n"]:
        """Probability that a run started at i, told from data up to i + delay, for each i."""
        return jnp.exp(self.log_posterior[delay:, delay])


def run_lengths(xs: Float[Array, "t"], hazard: ArrayLike, model: RunModel) -> RunLengths:
    """Filter runs exactly, in time and memory O(t^2).

    Args:
        xs: the data.
        hazard: probability that a run ends after each datum.
        model: of one run.
    """
    rate = jnp.asarray(hazard, xs.dtype)
    length = xs.shape[0]
    fresh = model.start()
    table = jax.tree.map(lambda x: jnp.broadcast_to(x, (length, *x.shape)), fresh)
    log_prior = jnp.full(length, -jnp.inf, xs.dtype).at[0].set(0.0)

    def step(carry, x):
        table, log_prior = carry
        log_p = jax.vmap(model.log_predictive, (0, None))(table, x)
        joint = jnp.where(jnp.isneginf(log_prior), -jnp.inf, log_prior + log_p)
        total = jax.nn.logsumexp(joint)
        posterior = joint - total
        grown = jnp.roll(posterior + jnp.log1p(-rate), 1).at[0].set(jnp.log(rate))
        taken = jax.vmap(model.update, (0, None))(table, x)
        moved = jax.tree.map(lambda new, first: jnp.roll(new, 1, 0).at[0].set(first), taken, fresh)
        return (moved, grown), (posterior, total)

    _, (posterior, predictive) = jax.lax.scan(step, (table, log_prior), xs)
    return RunLengths(posterior, predictive)


def _floats(*values: Any) -> list[Array]:
    return [jnp.asarray(v, dtype=float) for v in values]
