"""Pareto-smoothed importance sampling: are these weights to be trusted?

Vehtari, Simpson, Gelman, Yao and Gabry (2024), "Pareto smoothed importance sampling", JMLR 25(72):
algorithm 1 and section 3.2.4 (thresholds). The smoothing is ArviZ's, on the host.
"""

import dataclasses
import warnings
from typing import Any

import numpy as np
from jaxtyping import Float

from ..particles import Particles

LEAST = 25
"""With fewer draws the tail, a fifth of them, is too short to fit."""


@dataclasses.dataclass(frozen=True)
class Khat:
    """The Pareto shape k of the largest weights, and what it says.

    The weights have about 1/k finite moments: below 0.5 their variance is finite; up to
    `threshold` = min(1 - 1 / log10 S, 0.7) the smoothed estimates are reliable for S draws; above 1
    not even the mean exists. -inf: the largest weights are all equal, there is no tail; +inf: too
    few draws to say; NaN: a weight is NaN, or all are zero.
    """

    k: float
    draws: int

    @property
    def threshold(self) -> float:
        """Largest reliable k with so many draws."""
        return float(min(1 - 1 / np.log10(max(self.draws, 2)), 0.7))

    @property
    def ok(self) -> bool:
        """Is k at most the threshold?"""
        return self.k <= self.threshold

    @property
    def advice(self) -> str:
        """What to do."""
        if np.isnan(self.k):
            return "a weight is NaN or all are zero: look at the status of the run first"
        if self.k == np.inf:
            return (
                f"{self.draws} draws have too short a tail to fit: use at least {LEAST}, better "
                "some hundred"
            )
        if self.ok:
            return "the weights are reliable for this many draws"
        if self.k <= 0.7:
            # The S at which 1 - 1 / log10 S is k.
            needed = int(np.ceil(10 ** (1 / (1 - self.k))))
            return f"about {needed} draws are needed at this k; or use a proposal nearer the target"
        if self.k < 1:
            return (
                "the weights have too heavy a tail for more draws to help in practice. Instead "
                "use a proposal with heavier tails or nearer the target, temper it (SMC), or "
                "adapt it (PopulationMonteCarlo)"
            )
        return (
            "the weights have no finite mean that these draws could see: estimates with them mean "
            "nothing. Instead use another proposal, or SMC with tempering or resampling"
        )

    def __bool__(self) -> bool:
        return self.ok

    def __repr__(self) -> str:
        return f"Khat({self.k:.2f}, threshold {self.threshold:.2f}: {self.advice})"


def psis(
    log_weights: Any, reff: float = 1.0
) -> tuple[Float[np.ndarray, "*batch n"], Float[np.ndarray, "*batch"]]:
    """Pareto-smoothed log-weights, nats, and k-hat of each row [..., n]; see `Khat`.

    The largest weights are replaced by the expected order statistics of a generalized Pareto law
    fitted to them, and cut at the largest raw weight. They keep the offset of the input, so that
    `logsumexp - log n` is a log evidence, of less variance and no longer unbiased. Rows without a
    tail to fit come back as they are. `reff` is the relative efficiency of dependent draws.

    Raises:
        ImportError: arviz is not installed.
    """
    rows = np.asarray(log_weights, np.float64)
    if rows.ndim == 0 or rows.shape[-1] == 0:
        raise ValueError("psis needs at least one log-weight along the last axis")
    flat = rows.reshape(-1, rows.shape[-1])
    smoothed, ks = zip(*(_one(row, reff) for row in flat), strict=True)
    return np.reshape(smoothed, rows.shape), np.reshape(ks, rows.shape[:-1])


def khat(particles: Particles) -> Khat:
    """K-hat of a population's weights (of one run). After resampling weights are partly equal.

    For SMC it judges the last weights only: see `ess_history` for the steps before.
    """
    if particles.log_weights.ndim != 1:
        raise ValueError(
            "this is a batch of runs: pick one, jax.tree.map(lambda x: x[0], particles), or use "
            "psis(particles.log_weights)"
        )
    return Khat(float(psis(particles.log_weights)[1]), particles.log_weights.shape[-1])


def _one(row: Float[np.ndarray, "n"], reff: float) -> tuple[Float[np.ndarray, "n"], float]:
    top, n = row.max(), len(row)
    if not np.isfinite(top):
        return row, float("nan")
    tail = int(np.ceil(min(n / 5, 3 * np.sqrt(n / reff))))
    if n > tail and np.sort(row)[-tail - 1] == top:
        return row, -np.inf
    if n < LEAST:
        return row, float("inf")
    arviz = import_arviz("psis")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        smoothed, k = arviz.psislw(row.copy(), reff=reff, normalize=False)
    return np.asarray(smoothed), float(k)


def import_arviz(who: str) -> Any:
    """ArviZ, or an error that says how to install it."""
    try:
        import arviz
    except ImportError as error:
        raise ImportError(f"{who} needs ArviZ: pip install 'feynkac[plots]'") from error
    return arviz
