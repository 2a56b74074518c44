"""Radial kernels k(x, y) = f(|x - y|^2 / h), and what Stein's method needs of them."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class RadialKernel(eqx.Module):
    """A kernel f(u), u = |x - y|^2 / bandwidth; a subclass writes `profile(u)`, f with f(0) = 1.

    `bandwidth` (of the squared distance) None: the median of the squared distances between the
    particles over log(n + 1), anew at each step (Liu and Wang 2016, section 5).
    """

    bandwidth: Float[Array, ""] | None = eqx.field(
        default=None, converter=lambda x: None if x is None else jnp.asarray(x, dtype=float)
    )

    @abc.abstractmethod
    def profile(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """f, elementwise."""

    def scale(self, sq: Float[Array, "n n"]) -> Float[Array, ""]:
        """The bandwidth for squared distances [n, n] among particles."""
        if self.bandwidth is not None:
            return self.bandwidth.astype(sq.dtype)
        n = sq.shape[0]
        if n < 2:
            return jnp.ones((), sq.dtype)
        median = jnp.median(sq[jnp.triu_indices(n, 1)])
        scale = jax.lax.stop_gradient(median) / jnp.log(n + 1.0)
        return jnp.where(scale > 0, scale, jnp.ones_like(scale))

    def derivatives(
        self, u: Float[Array, "n m"]
    ) -> tuple[Float[Array, "n m"], Float[Array, "n m"], Float[Array, "n m"]]:
        """f, f' and f'', elementwise."""
        one = jnp.ones_like(u)

        def first(u):
            return jax.jvp(self.profile, (u,), (one,))

        (f, df), (_, ddf) = jax.jvp(first, (u,), (one,))
        return f, df, ddf


class RBF(RadialKernel):
    """exp(-|x - y|^2 / bandwidth)."""

    def profile(self, u):
        """See `RadialKernel`."""
        return jnp.exp(-u)


class IMQ(RadialKernel):
    """(1 + |x - y|^2 / bandwidth)^(-1/2): its discrepancy detects particles that fail to converge.

    Gorham and Mackey (2017), "Measuring sample quality with kernels", theorem 8.
    """

    def profile(self, u):
        """See `RadialKernel`."""
        return jax.lax.rsqrt(1.0 + u)


def squared_distances(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """|x_i - y_j|^2."""
    center = jax.lax.stop_gradient(jnp.mean(x, axis=0, keepdims=True))
    x, y = x - center, y - center
    norms = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1)[None, :]
    return jnp.maximum(norms - 2.0 * x @ y.T, 0.0)
