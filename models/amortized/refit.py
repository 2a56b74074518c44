"""A mixture fitted to weighted draws: expectation maximization; and the next prior of a filter.

Dempster, Laird and Rubin (1977), "Maximum likelihood from incomplete data via the EM algorithm".
A filter's predict step is exact for linear-Gaussian dynamics (`Mixture.moved`); for dynamics that
can only be drawn from, each component is moved by its own draws, and EM polishes the result.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ...ppl.code import Code
from .mixtures import Mixture


def refit(
    x: Float[Array, "n d"],
    start: Mixture,
    sweeps: int = 20,
    *,
    weights: Float[Array, " n"] | None = None,
    jitter: float = 1e-4,
) -> Mixture:
    """Maximize sum_i weights_i log q(x_i) over mixtures q of as many components as `start`.

    Heuristic: a local maximum, not worse than `start` but for `jitter`, which adds that fraction of
    the draws' whole variance to each component's, so that none collapses on a draw.
    """
    n, d = x.shape
    share = jnp.full((n,), 1.0 / n, x.dtype) if weights is None else weights / jnp.sum(weights)
    centre = share @ x
    whole = share @ (x - centre[None]) ** 2
    least = jnp.diag(jnp.maximum(jitter * whole, jnp.finfo(x.dtype).tiny))

    def sweep(q, _):
        log_each = q.log_weights[None] + jax.vmap(q._each)(x)
        held = share[:, None] * jax.nn.softmax(log_each)
        total = jnp.sum(held, axis=0)
        safe = jnp.maximum(total, jnp.finfo(x.dtype).tiny)
        means = held.T @ x / safe[:, None]
        centred = x[:, None, :] - means[None]
        covs = jnp.einsum("nk,nki,nkj->kij", held, centred, centred) / safe[:, None, None]
        new = Mixture(jnp.log(safe), means, jnp.linalg.cholesky(covs + least[None]))
        # A component that holds less than a draw stays where it is.
        few = total * n < d + 1

        def keep(old, new):
            return jnp.where(few.reshape((-1,) + (1,) * (new.ndim - 1)), old, new)

        kept = Mixture(new.logits, keep(q.means, new.means), keep(q.factors, new.factors))
        return kept, None

    return jax.lax.scan(sweep, start, None, length=sweeps)[0]


def spread(key: PRNGKeyArray, x: Float[Array, "n d"], components: int, sweeps: int = 50) -> Mixture:
    """A mixture with so many components for draws of any law: a parametric prior's, say."""
    centres = jax.random.choice(key, x, (components,), replace=False)
    factor = jnp.linalg.cholesky(
        jnp.atleast_2d(jnp.cov(x.T)) + 1e-9 * jnp.eye(x.shape[1], dtype=x.dtype)
    ) * (components ** (-1.0 / x.shape[1]))
    factors = jnp.broadcast_to(factor, (components, *factor.shape))
    return refit(x, Mixture(jnp.zeros((components,), x.dtype), centres, factors), sweeps)


class LinearDynamics(eqx.Module):
    """Dynamics x' = matrix x + shift + N(0, noise): an exact predict step."""

    matrix: Float[Array, "d d"]
    noise: Float[Array, "d d"]
    shift: Float[Array, " d"] | None = None

    def __call__(self, key: PRNGKeyArray, q: Mixture) -> tuple[Mixture, Float[Array, ""]]:
        """The predicted mixture, and its error: 0 nats."""
        shift = jnp.zeros_like(q.means[0]) if self.shift is None else self.shift
        return q.moved(self.matrix, self.noise, shift), jnp.zeros((), q.means.dtype)


class SampledDynamics(eqx.Module):
    """Dynamics given by draws, `move(key, x) -> x'`: moments of each component, then EM.

    With `log_density(x', x)`, nats, of a move, the error KL(moved law || mixture) is estimated from
    draws that the fit has not seen: consistent, too small by about one over `draws`. Without, NaN.
    """

    move: Code
    log_density: Code | None
    draws: int = eqx.field(static=True)
    sweeps: int = eqx.field(static=True)

    def __init__(
        self,
        move: Callable,
        log_density: Callable | None = None,
        *,
        draws: int = 256,
        sweeps: int = 5,
    ):
        self.move, self.draws, self.sweeps = Code(move), draws, sweeps
        self.log_density = None if log_density is None else Code(log_density)

    def __call__(self, key: PRNGKeyArray, q: Mixture) -> tuple[Mixture, Float[Array, ""]]:
        """The predicted mixture and its error, nats."""
        key_noise, key_move, key_test = jax.random.split(key, 3)
        k, d = q.means.shape
        noise = jax.random.normal(key_noise, (self.draws, k, d), q.means.dtype)
        x = q.means[None] + jnp.einsum("kij,nkj->nki", q.factors, noise)
        keys = jax.random.split(key_move, (self.draws, k))
        moved = jax.vmap(jax.vmap(self.move))(keys, x)
        means = jnp.mean(moved, axis=0)
        centred = moved - means[None]
        covs = jnp.einsum("nki,nkj->kij", centred, centred) / (self.draws - 1)
        start = Mixture(q.log_weights, means, jnp.linalg.cholesky(covs))
        weights = jnp.broadcast_to(jnp.exp(q.log_weights)[None], (self.draws, k))
        fitted = refit(
            moved.reshape(-1, d), start, self.sweeps, weights=weights.ravel() / self.draws
        )
        if (log_density := self.log_density) is None:
            return fitted, jnp.full((), jnp.nan, q.means.dtype)
        key_new, key_again = jax.random.split(key_test)
        fresh = q.sample(key_new, (self.draws,))
        new = jax.vmap(self.move)(jax.random.split(key_again, self.draws), fresh)
        flat, log_w = x.reshape(-1, d), jnp.log(weights.ravel() / self.draws)

        def log_moved(y):
            return jax.nn.logsumexp(log_w + jax.vmap(lambda x: log_density(y, x))(flat))

        log_p = jax.vmap(log_moved)(new)
        return fitted, jnp.mean(log_p - jax.vmap(fitted.log_prob)(new))
