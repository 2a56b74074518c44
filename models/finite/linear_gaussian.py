"""Linear-Gaussian state-space model: Kalman filter, RTS smoother, exact samples, optimal proposal.

Särkkä, "Bayesian Filtering and Smoothing" (2013): filter Theorem 4.2, smoother Theorem 8.2. The
update is in Joseph form. Optimal proposal: Doucet, Godsill and Andrieu (2000), section II-D.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.linalg import cho_factor, cho_solve, solve_triangular
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ...ppl.program import bind
from ...ppl.proposal import Proposal
from ...ppl.state_space import StateSpace
from . import linear_gaussian_parallel as in_parallel
from ._log_space import TableLike, check_shape, is_concrete


class LinearGaussian(eqx.Module):
    """x_0 ~ N(m0, P0), x_t = F x_{t-1} + N(0, Q), y_t = H x_t + N(0, R), for t = 0..T-1.

    `observed[t]` false skips y_t (its value, NaN included, is not read); None observes all.
    The covariances P0, Q and R must be symmetric positive definite.

    `parallel=True` runs over time by associative scans: O(log T) deep in place of O(T), for several
    times the work. It pays on an accelerator with long data; the results are the same up to
    rounding.
    """

    m0: Float[Array, "n"]
    P0: Float[Array, "n n"]
    F: Float[Array, "n n"]
    Q: Float[Array, "n n"]
    H: Float[Array, "m n"]
    R: Float[Array, "m m"]

    def __init__(
        self,
        m0: TableLike,
        P0: TableLike,
        F: TableLike,
        Q: TableLike,
        H: TableLike,
        R: TableLike,
    ) -> None:
        """ValueError if the shapes disagree or a covariance is not positive definite."""
        m0, P0, F, Q, H, R = (jnp.asarray(a, dtype=float) for a in (m0, P0, F, Q, H, R))
        if m0.ndim != 1 or H.ndim != 2:
            raise ValueError(
                f"m0 must be [n] and H [m, n], but their shapes are {m0.shape} and {H.shape}."
            )
        n, m = m0.shape[0], H.shape[0]
        for name, array in (("P0", P0), ("F", F), ("Q", Q)):
            check_shape(name, array, (n, n), f"m0 with {n} entries")
        check_shape("H", H, (m, n), f"m0 with {n} entries")
        check_shape("R", R, (m, m), f"H with {m} rows")
        for name, array in (("P0", P0), ("Q", Q), ("R", R)):
            _check_covariance(name, array)
        self.m0, self.P0, self.F, self.Q, self.H, self.R = m0, P0, F, Q, H, R

    def log_joint(
        self,
        xs: Float[Array, "T n"],
        ys: Float[Array, "T m"],
        observed: Bool[Array, "T"] | None = None,
    ) -> Float[Array, ""]:
        """Log density of states and (observed) data together, nats."""
        ys, observed = _masked(ys, observed)
        start = _log_normal(xs[0] - self.m0, self.P0)
        moves = jax.vmap(_log_normal, (0, None))(xs[1:] - xs[:-1] @ self.F.T, self.Q)
        seen = jax.vmap(_log_normal, (0, None))(ys - xs @ self.H.T, self.R)
        return start + jnp.sum(moves) + jnp.sum(jnp.where(observed, seen, 0.0))

    def log_evidence(
        self,
        ys: Float[Array, "T m"],
        observed: Bool[Array, "T"] | None = None,
        parallel: bool = False,
    ) -> Float[Array, ""]:
        """Log p(y_0..y_{T-1}) in nats."""
        if parallel:
            data = _masked(ys, observed)
            return in_parallel.log_evidence(self, in_parallel.filtered(self, *data), *data)
        return jnp.sum(self._filter(ys, observed)[0])

    def filtered(
        self,
        ys: Float[Array, "T m"],
        observed: Bool[Array, "T"] | None = None,
        parallel: bool = False,
    ) -> tuple[Float[Array, "T n"], Float[Array, "T n n"]]:
        """Means and covariances of x_t given y_0..y_t."""
        if parallel:
            return in_parallel.filtered(self, *_masked(ys, observed))
        return self._filter(ys, observed)[1:]

    def smoothed(
        self,
        ys: Float[Array, "T m"],
        observed: Bool[Array, "T"] | None = None,
        parallel: bool = False,
    ) -> tuple[Float[Array, "T n"], Float[Array, "T n n"]]:
        """Means and covariances of x_t given all of y_0..y_{T-1}."""
        if parallel:
            return in_parallel.smoothed(self, self.filtered(ys, observed, parallel))
        _, means, covs = self._filter(ys, observed)

        def backward(after, now):
            mean, cov, gain, rest = self._backward(*now)
            mean = mean + gain @ (after[0] - self.F @ mean)
            cov = rest + gain @ after[1] @ gain.T
            return (mean, cov), (mean, cov)

        last = (means[-1], covs[-1])
        _, (head_means, head_covs) = jax.lax.scan(
            backward, last, (means[:-1], covs[:-1]), reverse=True
        )
        return (
            jnp.concatenate([head_means, means[-1:]]),
            jnp.concatenate([head_covs, covs[-1:]]),
        )

    def smoothed_cross(
        self, ys: Float[Array, "T m"], observed: Bool[Array, "T"] | None = None
    ) -> Float[Array, "T-1 n n"]:
        """Covariance of x_t (rows) with x_{t+1} (columns) given all of y_0..y_{T-1}.

        With `smoothed` the expectations that expectation-maximization needs.
        """
        _, means, covs = self._filter(ys, observed)
        _, smoothed = self.smoothed(ys, observed)
        gains = jax.vmap(lambda mean, cov: self._backward(mean, cov)[2])(means[:-1], covs[:-1])
        return gains @ smoothed[1:]

    def posterior_sample(
        self, key: PRNGKeyArray, ys: Float[Array, "T m"], observed: Bool[Array, "T"] | None = None
    ) -> Float[Array, "T n"]:
        """Draw one exact sample of p(x_0..x_{T-1} | y), by backward sampling."""
        _, means, covs = self._filter(ys, observed)
        noise = jax.random.normal(key, means.shape, means.dtype)

        def backward(after, now):
            mean, cov, eps = now
            mean, _, gain, rest = self._backward(mean, cov)
            x = mean + gain @ (after - self.F @ mean) + jnp.linalg.cholesky(rest) @ eps
            return x, x

        last = means[-1] + jnp.linalg.cholesky(covs[-1]) @ noise[-1]
        _, head = jax.lax.scan(backward, last, (means[:-1], covs[:-1], noise[:-1]), reverse=True)
        return jnp.concatenate([head, last[None]])

    def transition(
        self, x: Float[Array, "n"], t: Int[Array, ""] | int
    ) -> tuple[Float[Array, "n"], Float[Array, "n n"]]:
        """Mean and covariance of x_t given x_{t-1} = x; at t = 0 of x_0 (x is not read)."""
        start = jnp.asarray(t) == 0
        return jnp.where(start, self.m0, self.F @ x), jnp.where(start, self.P0, self.Q)

    def guided(
        self, x: Float[Array, "n"], t: Int[Array, ""] | int, y: Float[Array, "m"]
    ) -> tuple[Float[Array, "n"], Float[Array, "n n"]]:
        """Mean and covariance of x_t given x_{t-1} = x and y_t = y: the optimal proposal."""
        return self._update(self.transition(x, t), y)[1:]

    def log_predictive(
        self, x: Float[Array, "n"], t: Int[Array, ""] | int, y: Float[Array, "m"]
    ) -> Float[Array, ""]:
        """Log p(y_t = y | x_{t-1} = x), nats: the weight increment of the optimal proposal."""
        return self._update(self.transition(x, t), y)[0]

    def state_space(self, length: int) -> StateSpace:
        """Return the same model as a program, with args `(ys,)` or `(ys, observed)`.

        Step t samples site "x" (N(m0, P0) at t = 0) and observes `ys[t]` as "y" where observed.
        """

        def init(ctx, lg, ys, observed=None):
            check_shape("ys", ys, (length, lg.H.shape[0]), f"a model of {length} steps")
            return jnp.zeros_like(lg.m0)

        return bind(StateSpace(init, _step, length), self)

    def optimal_proposal(self) -> Proposal:
        """Return the proposal for `state_space` that draws x_t given x_{t-1} and y_t (`guided`).

        Step t has log potential `log_predictive(x_{t-1}, t, y_t)`, whatever x_t is drawn.
        """
        return Proposal(_propose)

    def _update(self, predicted, y):
        """Condition N(mean, cov) on y = H x + N(0, R): log p(y), mean, covariance."""
        mean, cov = predicted
        scale = self.H @ cov @ self.H.T + self.R
        gain = cho_solve(cho_factor(scale), self.H @ cov).T
        surprise = y - self.H @ mean
        keep = jnp.eye(mean.shape[0], dtype=mean.dtype) - gain @ self.H
        updated = keep @ cov @ keep.T + gain @ self.R @ gain.T
        return _log_normal(surprise, scale), mean + gain @ surprise, updated

    def _filter(self, ys, observed):
        ys, observed = _masked(ys, observed)

        def step(predicted, inputs):
            y, seen = inputs
            log_p, mean, cov = self._update(predicted, y)
            mean = jnp.where(seen, mean, predicted[0])
            cov = jnp.where(seen, cov, predicted[1])
            ahead = (self.F @ mean, self.F @ cov @ self.F.T + self.Q)
            return ahead, (jnp.where(seen, log_p, 0.0), mean, cov)

        return jax.lax.scan(step, (self.m0, self.P0), (ys, observed))[1]

    def _backward(self, mean, cov):
        """Filtered moments of x_t, the gain on x_{t+1}, and the covariance of x_t given x_{t+1}."""
        predicted = self.F @ cov @ self.F.T + self.Q
        gain = cho_solve(cho_factor(predicted), self.F @ cov).T
        keep = jnp.eye(mean.shape[0], dtype=mean.dtype) - gain @ self.F
        return mean, cov, gain, keep @ cov @ keep.T + gain @ self.Q @ gain.T


def _step(ctx, previous, t, lg, ys, observed=None):
    ys, observed = _masked(ys, observed)
    x = ctx.sample("x", _normal(*lg.transition(previous, t)))
    ctx.observe("y", _normal(lg.H @ x, lg.R).mask(observed[t]), ys[t])
    return x


def _propose(ctx, previous, t, lg, ys, observed=None):
    ys, observed = _masked(ys, observed)
    blind, seeing = lg.transition(previous, t), lg.guided(previous, t, ys[t])
    mean, cov = (jnp.where(observed[t], b, a) for a, b in zip(blind, seeing, strict=True))
    ctx.sample("x", _normal(mean, cov))


def _normal(mean, cov):
    return dist.MultivariateNormal(mean, scale_tril=jnp.linalg.cholesky(cov))


def _log_normal(residual, cov):
    factor = jnp.linalg.cholesky(cov)
    whitened = solve_triangular(factor, residual, lower=True)
    log_det = jnp.sum(jnp.log(jnp.diagonal(factor)))
    return -0.5 * jnp.sum(whitened**2) - log_det - 0.5 * residual.shape[0] * np.log(2 * np.pi)


def _masked(ys, observed):
    if observed is None:
        observed = jnp.ones(ys.shape[0], dtype=bool)
    return jnp.where(observed[:, None], ys, 0.0), observed


def _check_covariance(name: str, cov: Float[Array, "n n"]) -> None:
    if not is_concrete(cov):
        return
    values = np.asarray(cov, dtype=np.float64)
    if not np.allclose(values, values.T, rtol=1e-5, atol=1e-7):
        raise ValueError(f"{name} is not symmetric; give 0.5 * ({name} + {name}.T).")
    smallest = np.linalg.eigvalsh(values).min()
    if not smallest > 0:
        raise ValueError(
            f"{name} is not positive definite (smallest eigenvalue {smallest:.3g}). Instead of a "
            f"singular or indefinite covariance give one with a density, e.g. {name} + 1e-6 I."
        )
