"""Gaussian-process regression as a prior over data sets, with its exact predictive.

Rasmussen and Williams (2006), "Gaussian processes for machine learning", equations 2.23-2.24; the
hyperpriors are those of Mueller et al. (2022), section 5.1.
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

Kernel = Callable[[Float[Array, "..."]], Float[Array, "..."]]


def squared_exponential(r2: Float[Array, "..."]) -> Float[Array, "..."]:
    """Correlation at a squared distance, in length scales: infinitely smooth functions."""
    return jnp.exp(-0.5 * r2)


def matern52(r2: Float[Array, "..."]) -> Float[Array, "..."]:
    """Correlation at a squared distance, in length scales: twice differentiable functions."""
    near = r2 < 1e-12
    r = jnp.where(near, 0.0, jnp.sqrt(5 * jnp.where(near, 1.0, r2)))
    return (1 + r + r**2 / 3) * jnp.exp(-r)


class GaussianProcess(eqx.Module):
    """y_i = f(x_i) + noise, f a Gaussian process of mean 0, x uniform in [0, 1]^dim.

    - `lengthscale`; `scale`, `noise`: variances of the function and of what is added to it.
    """

    lengthscale: Float[Array, ""] = number(0.2)
    scale: Float[Array, ""] = number(1.0)
    noise: Float[Array, ""] = number(0.01)
    kernel: Kernel = eqx.field(static=True, default=squared_exponential)
    dim: int = eqx.field(static=True, default=1)

    def covariance(self, a: Float[Array, "n d"], b: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """Covariances of the function's values."""
        r2 = jnp.sum((a[:, None] - b[None]) ** 2, axis=-1) / self.lengthscale**2
        return self.scale * self.kernel(r2)

    def law(self, x: Float[Array, "n d"]) -> dist.MultivariateNormal:
        """The joint law of y at x."""
        covariance = self.covariance(x, x) + self.noise * jnp.eye(len(x))
        return dist.MultivariateNormal(
            jnp.zeros(len(x)), scale_tril=jnp.linalg.cholesky(covariance)
        )

    def program(self, points: int) -> Program:
        """Sites `x` [points, dim] and `y` [points]."""
        return bind(program(_sample(points, self.dim)), self)

    def predictive(
        self,
        x: Float[Array, "n d"],
        y: Float[Array, "n"],
        queries: Float[Array, "m d"],
        mask: Bool[Array, "n"] | None = None,
    ) -> dist.Normal:
        """The exact law of y at each query given the points where `mask` (all); noise included."""
        seen = jnp.ones(len(x), bool) if mask is None else mask
        both = seen[:, None] & seen[None]
        diagonal = jnp.diag(jnp.where(seen, self.noise, 1.0))
        covariance = jnp.where(both, self.covariance(x, x), 0.0) + diagonal
        factor = jnp.linalg.cholesky(covariance)
        cross = jnp.where(seen[:, None], self.covariance(x, queries), 0.0)
        half = jax.scipy.linalg.solve_triangular(factor, cross, lower=True)
        white = jax.scipy.linalg.solve_triangular(factor, jnp.where(seen, y, 0.0), lower=True)
        variance = self.scale + self.noise - jnp.sum(half**2, axis=0)
        # Rounding may take all of it; what is added to the function stays.
        return dist.Normal(white @ half, jnp.sqrt(jnp.maximum(variance, self.noise)))


def _sample(points: int, dim: int) -> Callable:
    def gaussian_process(ctx: Context, process: GaussianProcess):
        x = ctx.sample("x", dist.Uniform(jnp.zeros((points, dim)), 1.0))
        return ctx.sample("y", process.law(x))

    return gaussian_process


class HyperGaussianProcess(eqx.Module):
    """A Gaussian process of unknown length scale and scale, x uniform in [0, 1]^dim.

    Gamma laws (concentration, rate) of `lengthscale`, of the variance `scale` and of the noise's
    variance `noise`, to which `floor` is added. Without a law of the noise it is `floor`: that of
    the paper, Gamma(1e-4, 1), has all but 0.2 % of its mass below 1e-6. The predictive has no
    closed form.
    """

    lengthscale: tuple[float, float] = eqx.field(static=True, default=(3.0, 6.0))
    scale: tuple[float, float] = eqx.field(static=True, default=(2.0, 0.15))
    noise: tuple[float, float] | None = eqx.field(static=True, default=None)
    floor: Float[Array, ""] = number(1e-4)
    kernel: Kernel = eqx.field(static=True, default=matern52)
    dim: int = eqx.field(static=True, default=5)

    def laws(self) -> dict[str, dist.Distribution]:
        """The laws of the hyperparameters, by site."""
        laws = {"lengthscale": self.lengthscale, "scale": self.scale, "noise": self.noise}
        return {
            name: dist.Gamma(*(jnp.asarray(v, dtype=float) for v in law))
            for name, law in laws.items()
            if law is not None
        }

    def process(self, hyper: dict[str, Float[Array, ""]]) -> GaussianProcess:
        """The process at given values of the hyperparameters."""
        noise = self.floor + hyper.get("noise", 0.0)
        return GaussianProcess(hyper["lengthscale"], hyper["scale"], noise, self.kernel, self.dim)

    def program(self, points: int) -> Program:
        """Sites `lengthscale`, `scale`, perhaps `noise`, `x` [points, dim] and `y` [points]."""
        return bind(program(_sample_family(points)), self)


def _sample_family(points: int) -> Callable:
    def hyper_gaussian_process(ctx: Context, family: HyperGaussianProcess):
        hyper = {name: ctx.sample(name, law) for name, law in family.laws().items()}
        x = ctx.sample("x", dist.Uniform(jnp.zeros((points, family.dim)), 1.0))
        return ctx.sample("y", family.process(hyper).law(x))

    return hyper_gaussian_process
