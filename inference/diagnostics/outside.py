"""Is this data set unlike those that the prior program makes?

A network answers data sets as if its prior had made them. The test here is a prior predictive check
(Box 1980) of a distance, calibrated by simulation so that its p-value is exact in finite samples:
Bates, Candes, Lei, Romano and Sesia (2023), "Testing for outliers with conformal p-values", eq. 3.
Mahalanobis distance of summaries for misspecified simulators: Schmitt et al. (2022) compare
summaries likewise.
"""

import abc
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ...ppl.code import Code
from ...ppl.compiled import compiled
from ...ppl.partial import Choices
from ...ppl.program import as_program
from .simulation import flat, prior_draw


class Distance(eqx.Module):
    """How far a summary is from those that the prior gave (they are standardized)."""

    @abc.abstractmethod
    def fit(self, summaries: Float[Array, "n d"]) -> Any:
        """What is to be kept of the prior's summaries."""

    @abc.abstractmethod
    def far(self, kept: Any, summary: Float[Array, "d"]) -> Float[Array, ""]:
        """The distance."""


class Mahalanobis(Distance):
    """From the mean, in units of the covariance, which is shrunk towards its diagonal."""

    shrink: float = eqx.field(static=True, default=0.01)

    def fit(self, summaries: Float[Array, "n d"]) -> Any:
        """Cholesky factor of the covariance."""
        covariance = summaries.T @ summaries / summaries.shape[0]
        d = summaries.shape[1]
        return jnp.linalg.cholesky((1 - self.shrink) * covariance + self.shrink * jnp.eye(d))

    def far(self, kept: Any, summary: Float[Array, "d"]) -> Float[Array, ""]:
        """The squared distance."""
        return jnp.sum(jax.scipy.linalg.solve_triangular(kept, summary, lower=True) ** 2)


class Nearest(Distance):
    """Mean distance to the `k` nearest of the prior's summaries: where they are no ellipsoid."""

    k: int = eqx.field(static=True, default=5)

    def fit(self, summaries: Float[Array, "n d"]) -> Any:
        """All of them."""
        return summaries

    def far(self, kept: Any, summary: Float[Array, "d"]) -> Float[Array, ""]:
        """The mean distance."""
        square = jnp.sum((kept - summary[None]) ** 2, axis=1)
        return -jnp.mean(jax.lax.top_k(-jnp.sqrt(square), self.k)[0])


class Familiar(eqx.Module):
    """What data sets of the prior look like; called with one, the p-value that it is one of them.

    Law: for a data set that the program made, P(p <= a) <= a, over this data set and the
    calibration together; for continuous summaries p is uniform on {1, ..., n + 1} / (n + 1). Data
    that are not finite have p = 0. Jittable, and a pytree: keep it beside a network.
    """

    summary: Any
    distance: Distance
    mean: Float[Array, "d"]
    scale: Float[Array, "d"]
    kept: Any
    calibration: Float[Array, "n"]

    def __call__(self, data: Choices) -> Float[Array, ""]:
        """The p-value of `data`, named like the program's observed sites."""
        raw = flat(data if self.summary is None else self.summary(data))
        if raw.shape != self.mean.shape:
            raise ValueError(
                f"the summary has {raw.shape[0]} numbers, the prior's had {self.mean.shape[0]}: "
                "give data of the shapes that the program makes"
            )
        z = (raw - self.mean) / self.scale
        far = self.distance.far(self.kept, z)
        n = self.calibration.shape[0]
        p = (1 + jnp.sum(self.calibration >= far)) / (n + 1)
        finite = jnp.all(jnp.isfinite(flat(data))) & jnp.all(jnp.isfinite(z))
        return jnp.where(finite, p, 0.0)

    def outside(self, data: Choices, level: float = 0.01) -> Bool[Array, ""]:
        """Is the p-value at most `level`? At most that share of the prior's own data sets are."""
        return self(data) <= level


def familiar(
    key: PRNGKeyArray,
    program: Any,
    observed: Sequence[str],
    *,
    args: tuple = (),
    summary: Callable[[Choices], Any] | None = None,
    distance: Distance | None = None,
    draws: int = 2000,
) -> Familiar:
    """Learn what data sets of a prior look like from `draws` of them.

    Args:
        key: of the draws; half are fitted, half calibrate.
        program: samples latents and data.
        observed: the sites that are data.
        args: the program's.
        summary: of the data {site: value}, to an array or tree: statistics or a network's embedding
            (an `eqx.Module`, or a function). By default all numbers of the data as they stand; for
            sets of points give a summary that does not depend on their order.
        distance: `Mahalanobis()` by default, or `Nearest(k)`.
        draws: how many; the smallest p-value is 2 / draws.

    Raises:
        ProgramError: `observed` does not name some, but not all, sites.
    """
    if summary is not None and not isinstance(summary, eqx.Module):
        summary = Code(summary)
    keys = jax.random.split(key, draws)
    distance = Mahalanobis() if distance is None else distance
    return _familiar(as_program(program), tuple(observed), args, summary, distance, keys)


@compiled
def _familiar(program, observed, args, summary, distance, keys):
    def one(key):
        data = prior_draw(key, program, observed, args)[1]
        return flat(data if summary is None else summary(data))

    raw = jax.vmap(one)(keys)
    fitted, held = jnp.split(raw, [raw.shape[0] // 2])
    mean, scale = jnp.mean(fitted, axis=0), jnp.std(fitted, axis=0)
    scale = jnp.where(scale > 0, scale, 1.0)
    kept = distance.fit((fitted - mean[None]) / scale[None])
    far = jax.vmap(lambda x: distance.far(kept, (x - mean) / scale))(held)
    return Familiar(summary, distance, mean, scale, kept, far)
