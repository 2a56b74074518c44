"""Predictive distributions against what happened: probability integral transform and log score.

Dawid (1984), "The prequential approach"; for discrete outcomes randomized: Czado, Gneiting and Held
(2009), "Predictive model assessment for count data", eq. 1. The expected paired difference of
negative log scores to an exact predictive is the expected KL divergence from it: Mueller et al.
(2022), "Transformers can do Bayesian inference", corollary 1.1.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import ArrayLike, Float
from scipy.special import stdtrit

from .uniformity import gamma_test

_CELLS = 200


@dataclasses.dataclass(frozen=True)
class Pit:
    """Values of the predictive distribution function at the outcomes; uniform if it is exact."""

    values: Float[np.ndarray, "n"]

    @property
    def p_value(self) -> float:
        """Of uniformity, by `gamma_test` on 200 equal cells."""
        cells = np.minimum((self.values * _CELLS).astype(int), _CELLS - 1)
        return gamma_test(cells, _CELLS - 1)

    def check(self, level: float = 1e-3) -> "Pit":
        """Itself, or `AssertionError` with the report if p_value < level."""
        if self.p_value < level:
            raise AssertionError(self.report())
        return self

    def coverage(self, levels: Float[np.ndarray, "n"] | Sequence[float]) -> Float[np.ndarray, "n"]:
        """How often outcomes fall in the central predictive interval of each level."""
        inside = np.abs(2 * self.values - 1)
        return np.array([(inside <= level).mean() for level in np.asarray(levels, float)])

    def report(self) -> str:
        """The p-value, mean and spread, and coverage of 50% and 95% intervals."""
        half, most = self.coverage([0.5, 0.95])
        spread = self.values.std() * math.sqrt(12)
        return (
            f"probability integral transform of {len(self.values)} outcomes: p = "
            f"{self.p_value:.2g}, mean {self.values.mean():.3f} (1/2), spread {spread:.3f} (1; "
            f"more is too narrow), 50% intervals hold {half:.1%}, 95% intervals {most:.1%}"
        )

    def plot(self, axes: Any = None) -> Any:
        """Histogram with the 99% band of each bar; a matplotlib figure."""
        from .panels import plot_uniform

        return plot_uniform(self.values, axes)


def pit(
    cdf: Float[ArrayLike, "..."], below: Float[ArrayLike, "..."] | None = None, seed: int = 0
) -> Pit:
    """Collect F(y | data) over data sets that are draws of the prior program.

    Args:
        cdf: probability of at most the outcome, one outcome a data set (several of one data set
            depend on each other, and the p-value would be wrong).
        below: probability of less than it, for discrete outcomes: a uniform point between is taken.
        seed: of these points.

    Raises:
        ValueError: not one number a data set, or one outside of [0, 1] or NaN.
    """
    upper = np.asarray(cdf, np.float64)
    lower = upper if below is None else np.asarray(below, np.float64)
    if upper.ndim != 1 or upper.shape != lower.shape:
        raise ValueError(
            f"needs one value a data set, got shapes {upper.shape}, {lower.shape}: instead of all "
            "queries of a data set take one"
        )
    values = lower + (upper - lower) * np.random.default_rng(seed).uniform(size=len(upper))
    if not ((values >= -1e-6) & (values <= 1 + 1e-6) & (lower <= upper + 1e-6)).all():
        raise ValueError("a probability is NaN, outside of [0, 1], or below its lower end")
    return Pit(np.clip(values, 0, 1))


@dataclasses.dataclass(frozen=True)
class Paired:
    """Mean paired difference over data sets, with its interval; see `paired`."""

    mean: float
    low: float
    high: float
    differences: Float[np.ndarray, "n"]

    def __repr__(self) -> str:
        n = len(self.differences)
        return f"Paired({self.mean:.4g} in [{self.low:.4g}, {self.high:.4g}], {n} data sets)"


def paired(
    score: Float[ArrayLike, "..."],
    reference: Float[ArrayLike, "..."],
    level: float = 0.95,
) -> Paired:
    """Mean of `score - reference` over data sets, with Student's interval.

    With negative log scores (nats) of a network and of the exact predictive, on data sets from the
    prior program, it is an unbiased estimate of the network's expected KL divergence. Queries of
    one data set are averaged first: they are not independent.

    Raises:
        ValueError: shapes that differ, fewer than two data sets, or a value that is not finite.
    """
    a, b = np.asarray(score, np.float64), np.asarray(reference, np.float64)
    if a.shape != b.shape or a.ndim < 1 or len(a) < 2:
        raise ValueError(f"needs scores [data sets, ...] of one shape, got {a.shape} and {b.shape}")
    difference = (a - b).reshape(len(a), -1).mean(1)
    if not np.isfinite(difference).all():
        bad = np.flatnonzero(~np.isfinite(difference))
        raise ValueError(f"the difference is not finite for data sets {bad[:5].tolist()}")
    mean, error = difference.mean(), difference.std(ddof=1) / math.sqrt(len(difference))
    half = float(stdtrit(len(difference) - 1, (1 + level) / 2)) * error
    return Paired(float(mean), float(mean - half), float(mean + half), difference)
