"""What Gaussian-process regressions say of each point, for a network to read beside the raw data.

A network of few layers learns slowly to compare many features with each other; a regression does
that at once, and the network learns how far to trust it. For the points of the context it is the
answer without the point, in closed form: Rasmussen and Williams (2006), "Gaussian processes for
machine learning", equations 2.25, 2.26, 2.30, 5.12. The variance that y and noise share is
unknown, InverseGamma(1/2, 1/2), so that the answers are Student laws and the evidence is one of
shapes, not of sizes: Gelman et al. (2013), "Bayesian data analysis", section 14.2.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Bool, Float

from .priors.gaussian_process import Kernel, squared_exponential

LINEAR = float("inf")
LEAST = -12.0
"""Log probability of a kernel below which a network is not told how far."""


class Solved(NamedTuple):
    """Regressions on a context: what queries need of it."""

    x: Float[Array, "*batch n d"]
    mask: Bool[Array, "*batch n"]
    inverse: Float[Array, "*batch kernels n n"]
    weights: Float[Array, "*batch kernels n c"]
    scale: Float[Array, "*batch kernels c"]
    evidence: Float[Array, "*batch kernels"]


class KernelScores(eqx.Module):
    """Location and log scale of every column of y, a kernel each and of their mixture; log weights.

    A weight is a kernel's posterior probability where all are equally likely at first (the log
    evidence is the mean of those of the columns).

    - `kernels`: pairs of a length scale, in units of the root of the number of features
      (`LINEAR` is the linear kernel x.x' / d), and the variance of the noise by that of y.
    - `kernel`: of the length scales that are finite; see `GaussianProcess`.
    - `constant`: variance of a number added to all y, by that of y: they need not be centred.
    """

    kernels: tuple[tuple[float, float], ...] = eqx.field(
        static=True, default=((LINEAR, 0.03), (LINEAR, 0.3), (1.0, 0.1), (0.4, 0.1))
    )
    kernel: Kernel = eqx.field(static=True, default=squared_exponential)
    constant: float = eqx.field(static=True, default=1.0)

    def __check_init__(self) -> None:
        """ValueError unless all are positive and there is one."""
        if not self.kernels or not all(scale > 0 and noise > 0 for scale, noise in self.kernels):
            raise ValueError(
                f"kernels are pairs of a length scale and a variance, both above 0, one pair at "
                f"least; got {self.kernels}"
            )
        if not 0 <= self.constant < float("inf"):
            raise ValueError(f"the constant's variance is 0 or above, got {self.constant}")

    def features(self, columns: int) -> int:
        """How many numbers there are a point, where y has so many columns."""
        return len(self.kernels) * (2 * columns + 1) + 2 * columns

    def fit(
        self, x: Float[Array, "*batch n d"], y: Float[Array, "*batch n c"], mask: Array
    ) -> tuple[Solved, Float[Array, "*batch n k"]]:
        """The regressions on the points where `mask`, and what each says of these without them."""

        def one(x: Array, y: Array, mask: Array) -> tuple[Solved, Array]:
            x, y = (jnp.where(mask[:, None], v, 0.0) for v in (x, y))
            solved, told = jax.vmap(_solved, (0, 0, None, None))(
                self._gram(x, x), self._noise, y, mask
            )
            return Solved(x, mask, *solved), _told(*told)

        for _ in mask.shape[:-1]:
            one = jax.vmap(one)
        return one(x, y, mask)

    def read(
        self, solved: Solved, queries: Float[Array, "*batch m d"]
    ) -> Float[Array, "*batch m k"]:
        """The same of queries, given the whole context."""

        def one(solved: Solved, queries: Array) -> Array:
            cross = jnp.where(solved.mask[None, None], self._gram(queries, solved.x), 0.0)
            taken = jnp.sum((cross @ solved.inverse) * cross, axis=-1)
            own = jax.vmap(lambda q: self._gram(q[None], q[None])[:, 0, 0], out_axes=1)(queries)
            left = jnp.maximum(own - taken, 0.0) + self._noise[:, None]
            scale = jnp.sqrt(left[..., None] * solved.scale[:, None])
            evidence = jnp.broadcast_to(solved.evidence[:, None], left.shape)
            return _told(cross @ solved.weights, scale, evidence)

        for _ in queries.shape[:-2]:
            one = jax.vmap(one)
        return one(solved, queries)

    def mixture(
        self, scores: Float[Array, "*batch k"], columns: int
    ) -> tuple[Float[Array, "*batch c"], Float[Array, "*batch c"]]:
        """Of what `read` gives: location and log scale of each column under all kernels."""
        return scores[..., -2 * columns : -columns], scores[..., -columns:]

    @property
    def _noise(self) -> Float[Array, "kernels"]:
        return jnp.asarray([noise for _, noise in self.kernels], float)

    def _gram(self, a: Float[Array, "n d"], b: Float[Array, "m d"]) -> Float[Array, "kernels n m"]:
        products = a @ b.T / a.shape[-1]
        apart = jnp.mean(a**2, axis=1)[:, None] + jnp.mean(b**2, axis=1)[None] - 2 * products
        every = [
            products if scale == LINEAR else self.kernel(jnp.maximum(apart, 0.0) / scale**2)
            for scale, _ in self.kernels
        ]
        return self.constant + jnp.stack(every)


def _solved(gram: Array, noise: Array, y: Array, mask: Array) -> tuple[tuple, tuple]:
    """One kernel: inverse, weights, scale and evidence; of each point without it, what is told."""
    # Adds nothing, but y comes first: jaxlib 0.10.2 can hang on a CPU where a prior's own Cholesky
    # decomposition does not depend on this one nor this one on it.
    noise = noise + 0.0 * jnp.sum(y)
    gram = jnp.where(mask[:, None] & mask[None], gram, 0.0) + noise * jnp.eye(len(mask))
    factor = jnp.linalg.cholesky(gram)
    half = solve_triangular(factor, jnp.eye(len(mask)), lower=True)
    inverse = half.T @ half
    weights, precision = inverse @ y, jnp.diagonal(inverse)[:, None]
    n = jnp.sum(mask.astype(y.dtype))
    size = jnp.sum(jnp.where(mask, jnp.log(jnp.diagonal(factor)), 0.0))
    squares = 1 + jnp.sum(y * weights, axis=0)
    evidence = -0.5 * (n + 1) * jnp.mean(jnp.log(squares)) - size
    apart = weights / precision  # of each point from what the others say of it
    rest = jnp.maximum(squares[None] - apart * weights, 1.0)
    left = jnp.maximum(n, 1)
    without = -0.5 * left * jnp.mean(jnp.log(rest), -1) - size - 0.5 * jnp.log(precision[:, 0])
    told = y - apart, jnp.sqrt(rest / left / precision), without
    return (inverse, weights, squares / (n + 1), evidence), told


def _told(mean: Array, scale: Array, evidence: Array) -> Float[Array, "points k"]:
    """Kernels' means and scales [kernels, points, c] and evidence [kernels, points] as features."""
    log_weights = jax.nn.log_softmax(evidence, axis=0)
    share = jnp.exp(log_weights)[..., None]
    middle = jnp.sum(share * mean, axis=0)
    spread = jnp.sum(share * (scale**2 + (mean - middle[None]) ** 2), axis=0)
    log_weights = jnp.maximum(log_weights, LEAST)[..., None]
    each = jnp.concatenate([mean, jnp.log(scale), log_weights], axis=-1)
    each = jnp.moveaxis(each, 0, 1).reshape(each.shape[1], -1)
    return jnp.concatenate([each, middle, 0.5 * jnp.log(spread)], axis=-1)
