"""Where to move each particle: the directions of steepest descent to a target.

SVGD: Liu and Wang (2016), "Stein variational gradient descent", equation 8. KSD descent: Korba,
Aubin-Frankowski, Majewski and Ablin (2021), "Kernel Stein discrepancy descent", equation 6.
"""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .discrepancy import stein_discrepancy
from .kernels import IMQ, RBF, RadialKernel, squared_distances

LogDensity = Callable[[Float[Array, " d"]], Float[Array, ""]]


class Direction(eqx.Module):
    """Particles [n, d] and the target's log density to the direction [n, d] of each."""

    @abc.abstractmethod
    def __call__(
        self, x: Float[Array, "n d"], log_density: LogDensity
    ) -> tuple[Float[Array, "n d"], Float[Array, "n d"]]:
        """The directions, and the scores (gradients of the log density) at the particles."""


class SVGD(Direction):
    """The direction in the kernel's space that lowers KL(particles, target) fastest.

    mean over j of k(x_j, x_i) score(x_j) + grad_{x_j} k(x_j, x_i). One particle climbs to a mode.
    """

    kernel: RadialKernel = eqx.field(default_factory=RBF)

    def __call__(self, x, log_density):
        """See `Direction`."""
        scores = jax.vmap(jax.grad(log_density))(x)
        sq = squared_distances(x, x)
        h = self.kernel.scale(sq)
        f, df, _ = self.kernel.derivatives(sq / h)
        repulsion = (2.0 / h) * (df @ x - jnp.sum(df, axis=1, keepdims=True) * x)
        return (f @ scores + repulsion) / x.shape[0], scores


class KSDDescent(Direction):
    """Minus the gradient of half the squared kernelized Stein discrepancy of the particles.

    Needs second derivatives of the log density; stuck in places of high symmetry, and blind to
    wrong weights of far modes (Korba et al., section 4).
    """

    kernel: RadialKernel = eqx.field(default_factory=lambda: IMQ(1.0))

    def __call__(self, x, log_density):
        """See `Direction`."""

        def half(x):
            scores = jax.vmap(jax.grad(log_density))(x)
            return 0.5 * stein_discrepancy(x, scores, self.kernel), scores

        gradient, scores = jax.grad(half, has_aux=True)(x)
        return -x.shape[0] * gradient, scores
