"""Linear regression with a normal prior of the weights (ridge), with its exact predictive.

Bishop (2006), "Pattern recognition and machine learning", equations 3.53-3.59.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float

from ....ppl.context import Context
from ....ppl.program import Program, bind, program
from .number import number


class LinearRegression(eqx.Module):
    """y = x w + noise, x and w normal of mean 0.

    - `dim`: features of x, each of variance 1; `scale`, `noise`: standard deviations of each
      weight and of the noise. The posterior's mean is ridge regression with penalty
      (noise / scale)^2.
    """

    dim: int = eqx.field(static=True)
    scale: Float[Array, ""] = number(1.0)
    noise: Float[Array, ""] = number(0.5)

    def program(self, points: int) -> Program:
        """Sites `weights` [dim], `x` [points, dim] and `y` [points]."""
        return bind(program(_sample(points)), self)

    def posterior(
        self, x: Float[Array, "n d"], y: Float[Array, "n"], mask: Bool[Array, "n"] | None = None
    ) -> dist.MultivariateNormal:
        """The exact law of the weights given the points where `mask` (all)."""
        seen = jnp.ones(len(x), bool) if mask is None else mask
        x, y = jnp.where(seen[:, None], x, 0.0), jnp.where(seen, y, 0.0)
        precision = x.T @ x / self.noise**2 + jnp.eye(self.dim) / self.scale**2
        mean = jnp.linalg.solve(precision, x.T @ y / self.noise**2)
        return dist.MultivariateNormal(mean, precision_matrix=precision)

    def predictive(
        self,
        x: Float[Array, "n d"],
        y: Float[Array, "n"],
        queries: Float[Array, "m d"],
        mask: Bool[Array, "n"] | None = None,
    ) -> dist.Normal:
        """The exact law of y at each query given the points where `mask` (all); noise included."""
        weights = self.posterior(x, y, mask)
        half = jax.scipy.linalg.solve_triangular(
            jnp.linalg.cholesky(weights.precision_matrix), queries.T, lower=True
        )
        return dist.Normal(
            queries @ weights.mean, jnp.sqrt(jnp.sum(half**2, axis=0) + self.noise**2)
        )


def _sample(points: int) -> Callable:
    def linear_regression(ctx: Context, family: LinearRegression):
        zeros = jnp.zeros(family.dim)
        weights = ctx.sample("weights", dist.Normal(zeros, family.scale))
        x = ctx.sample("x", dist.Normal(jnp.zeros((points, family.dim)), 1.0))
        return ctx.sample("y", dist.Normal(x @ weights, family.noise))

    return linear_regression
