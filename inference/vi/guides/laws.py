"""Normal laws on R^d that factor over sites: what is drawn first conditions what follows.

So a guide can be given some of its sites and draw the rest, as `ppl.marginal` needs.
"""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float


class Law(eqx.Module):
    """A law of coordinates z in R^d; its arrays are free of constraints."""

    loc: eqx.AbstractVar[Float[Array, " d"]]

    def begin(self) -> Any:
        """What is known before the first coordinate."""
        return jnp.zeros((0,))

    @abc.abstractmethod
    def conditional(self, known: Any, start: int, size: int) -> dist.Distribution:
        """The law of z[start : start + size] given what is known of z[: start]."""

    @abc.abstractmethod
    def after(self, known: Any, start: int, z: Float[Array, " size"]) -> Any:
        """What is known when z[start : start + size] is known too."""

    @abc.abstractmethod
    def joint(self) -> dist.Distribution:
        """The law of all coordinates, event [d]."""


class MeanField(Law):
    """z_i ~ N(loc_i, exp(log_scale_i)^2), independent."""

    loc: Float[Array, " d"]
    log_scale: Float[Array, " d"]

    def conditional(self, known, start, size):
        """See `Law`."""
        part = slice(start, start + size)
        return dist.Normal(self.loc[part], jnp.exp(self.log_scale[part])).to_event(1)

    def after(self, known, start, z):
        """See `Law`."""
        return known

    def joint(self):
        """See `Law`."""
        return self.conditional(None, 0, self.loc.size)


class FullRank(Law):
    """z ~ N(loc, L L'): L is the strictly lower part of `lower`, with exp(log_scale) as diagonal.

    The conditionals are rows of L: z = loc + L e, and e is known as far as z is.
    """

    loc: Float[Array, " d"]
    log_scale: Float[Array, " d"]
    lower: Float[Array, "d d"]

    @property
    def scale_tril(self) -> Float[Array, "d d"]:
        """L, the Cholesky factor of the covariance."""
        return jnp.tril(self.lower, -1) + jnp.diag(jnp.exp(self.log_scale))

    def conditional(self, known, start, size):
        """See `Law`."""
        loc, factor = self._rows(known, start, size)
        return dist.MultivariateNormal(loc, scale_tril=factor)

    def after(self, known, start, z):
        """See `Law`."""
        loc, factor = self._rows(known, start, z.shape[0])
        return jnp.concatenate([known, solve_triangular(factor, z - loc, lower=True)])

    def joint(self):
        """See `Law`."""
        return dist.MultivariateNormal(self.loc, scale_tril=self.scale_tril)

    def _rows(self, known, start, size):
        rows = self.scale_tril[start : start + size]
        loc = self.loc[start : start + size] + rows[:, :start] @ known
        return loc, rows[:, start : start + size]


class LowRank(Law):
    """z = loc + factor u + exp(log_scale) e with u [rank] and e [d] standard normal.

    What is known of z[: start] is the posterior of u, as precision and precision times mean:
    O(d rank^2) in all.
    """

    loc: Float[Array, " d"]
    log_scale: Float[Array, " d"]
    factor: Float[Array, "d rank"]

    def begin(self):
        """See `Law`."""
        rank = self.factor.shape[1]
        return jnp.eye(rank), jnp.zeros((rank,))

    def conditional(self, known, start, size):
        """See `Law`."""
        precision, shift = known
        lower = jnp.linalg.cholesky(precision)
        eye = jnp.eye(precision.shape[0], dtype=precision.dtype)
        root = solve_triangular(lower.T, eye, lower=False)
        loc, factor, variance = self._part(start, size)
        return dist.LowRankMultivariateNormal(
            loc + factor @ (root @ (root.T @ shift)), factor @ root, variance
        )

    def after(self, known, start, z):
        """See `Law`."""
        precision, shift = known
        loc, factor, variance = self._part(start, z.shape[0])
        scaled = factor / variance[:, None]
        return precision + scaled.T @ factor, shift + scaled.T @ (z - loc)

    def joint(self):
        """See `Law`."""
        return dist.LowRankMultivariateNormal(*self._part(0, self.loc.size))

    def _part(self, start, size):
        part = slice(start, start + size)
        return self.loc[part], self.factor[part], jnp.exp(2.0 * self.log_scale[part])
