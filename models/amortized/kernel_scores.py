"""What Gaussian-process regressions say of each point, for a network to read beside the raw data.

A network of few layers learns slowly to compare many features with each other; a regression does
that at once, and the network learns how far to trust it. For the points of the context it is the
prediction that leaves the point out, in closed form: Rasmussen and Williams (2006), "Gaussian
processes for machine learning", equations 2.25, 2.26, 2.30, 5.12.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Bool, Float

from .priors.gaussian_process import Kernel, squared_exponential

LINEAR = float("inf")


class Solved(NamedTuple):
    """Regressions on a context: what queries need of it."""

    x: Float[Array, "*batch n d"]
    mask: Bool[Array, "*batch n"]
    inverse: Float[Array, "*batch kernels n n"]
    weights: Float[Array, "*batch kernels n c"]
    evidence: Float[Array, "*batch kernels"]


class KernelScores(eqx.Module):
    """Mean of every column of y, log standard deviation and log evidence a point, a kernel each.

    - `kernels`: pairs of a length scale, in units of the root of the number of features
      (`LINEAR` is the linear kernel x.x' / d), and the variance of the noise. Each kernel has a
      constant added, so that y need not be centred.
    - `kernel`: of the length scales that are finite; see `GaussianProcess`.
    """

    kernels: tuple[tuple[float, float], ...] = eqx.field(
        static=True, default=((LINEAR, 0.03), (LINEAR, 0.3), (1.0, 0.1), (0.4, 0.1))
    )
    kernel: Kernel = eqx.field(static=True, default=squared_exponential)

    def __check_init__(self) -> None:
        """ValueError unless all are positive and there is one."""
        if not self.kernels or not all(scale > 0 and noise > 0 for scale, noise in self.kernels):
            raise ValueError(
                f"kernels are pairs of a length scale and a variance, both above 0, one pair at "
                f"least; got {self.kernels}"
            )

    def features(self, columns: int) -> int:
        """How many numbers there are a point, where y has so many columns."""
        return len(self.kernels) * (columns + 2)

    def fit(
        self, x: Float[Array, "*batch n d"], y: Float[Array, "*batch n c"], mask: Array
    ) -> tuple[Solved, Float[Array, "*batch n k"]]:
        """The regressions on the points where `mask`, and what each says of these without them."""

        def one(x: Array, y: Array, mask: Array) -> tuple[Solved, Array]:
            x, y = (jnp.where(mask[:, None], v, 0.0) for v in (x, y))
            inverse, *told = jax.vmap(_solved, (0, 0, None, None))(
                self._gram(x, x), self._noise, y, mask
            )
            weights, mean, log_deviation, evidence = told
            solved = Solved(x, mask, inverse, weights, evidence)
            return solved, _joined(mean, log_deviation, evidence)

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
            return _joined(cross @ solved.weights, 0.5 * jnp.log(left), solved.evidence)

        for _ in queries.shape[:-2]:
            one = jax.vmap(one)
        return one(solved, queries)

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
        return 1 + jnp.stack(every)


def _solved(gram: Array, noise: Array, y: Array, mask: Array) -> tuple[Array, ...]:
    """One kernel: inverse, weights; mean and log deviation of each point without it; evidence."""
    # Adds nothing, but y comes first: jaxlib 0.10.2 can hang on a CPU where a prior's own Cholesky
    # decomposition does not depend on this one nor this one on it.
    noise = noise + 0.0 * jnp.sum(y)
    gram = jnp.where(mask[:, None] & mask[None], gram, 0.0) + noise * jnp.eye(len(mask))
    factor = jnp.linalg.cholesky(gram)
    half = solve_triangular(factor, jnp.eye(len(mask)), lower=True)
    inverse = half.T @ half
    weights, precision = inverse @ y, jnp.diagonal(inverse)
    excess = jnp.sum(jnp.log(jnp.diagonal(factor)) - 0.5 * jnp.log(noise))
    evidence = -(0.5 * jnp.mean(jnp.sum(y * weights, axis=0)) + excess)
    evidence = evidence / jnp.maximum(jnp.sum(mask.astype(evidence.dtype)), 1)
    return inverse, weights, y - weights / precision[:, None], -0.5 * jnp.log(precision), evidence


def _joined(mean: Array, log_deviation: Array, evidence: Array) -> Float[Array, "points k"]:
    """The kernels' numbers side by side."""
    evidence = jnp.broadcast_to(evidence[:, None], log_deviation.shape)
    scores = jnp.concatenate([mean, log_deviation[..., None], evidence[..., None]], axis=-1)
    return jnp.moveaxis(scores, 0, 1).reshape(scores.shape[1], -1)
