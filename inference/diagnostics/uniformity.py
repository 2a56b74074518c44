"""Tests that ranks are uniform on 0..L: chi-squared, and the gamma test of all counts at once.

Gamma: Sailynoja, Burkner and Vehtari (2022), "Graphical test for discrete uniformity and its
applications in goodness-of-fit evaluation and multiple sample comparison", section 2.2, with
gamma = 2 min_i min{ P(B_i <= R_i), P(B_i >= R_i) }, where R_i counts the ranks below i, and B_i is
Bin(N, i / (L + 1)).
"""

import abc
import dataclasses
import functools
from collections.abc import Mapping
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Int
from scipy.special import bdtr, bdtrc, gammaincc

_NULLS = 2000
Check = TypeVar("Check", bound="RankCheck")


@dataclasses.dataclass(frozen=True)
class RankCheck(abc.ABC):
    """Ranks by name, uniform on 0..draws if all is exact; `failed` runs are in none of them."""

    ranks: Mapping[str, Int[np.ndarray, "runs"]]
    draws: int
    failed: int

    @abc.abstractmethod
    def p_values(self) -> dict[str, float]:
        """P-value of uniformity by name."""

    @abc.abstractmethod
    def report(self) -> str:
        """P-values, smallest first, and what they say."""

    @property
    def p_value(self) -> float:
        """The smallest p-value, times their number (Bonferroni); 0 if a run failed."""
        values = self.p_values()
        return 0.0 if self.failed else min(1.0, min(values.values()) * len(values))

    def check(self: Check, level: float = 1e-3) -> Check:
        """Itself, or `AssertionError` with the report if p_value < level."""
        if self.p_value < level:
            raise AssertionError(self.report())
        return self


def chi_squared(ranks: Int[np.ndarray, "runs"], draws: int, bins: int = 20) -> float:
    """P-value of the counts of ranks in bins that are as equal as whole ranks allow."""
    n = len(ranks)
    if not n:
        return 1.0
    bins = int(max(2, min(bins, draws + 1, n // 10)))
    edges = np.round(np.linspace(0, draws + 1, bins + 1))
    expected = n * np.diff(edges) / (draws + 1)
    counts = np.histogram(ranks, edges - 0.5)[0]
    statistic = float(np.sum((counts - expected) ** 2 / expected))
    return float(gammaincc((bins - 1) / 2, statistic / 2))


def gamma_test(ranks: Int[np.ndarray, "runs"], draws: int) -> float:
    """P-value of gamma: of all deviations of the distribution function, the least probable.

    It is told from 2000 simulated sets of uniform ranks; below their resolution it is bounded by
    L gamma, which is never too small.
    """
    if not len(ranks):
        return 1.0
    counts = np.bincount(ranks, minlength=draws + 1)[None]
    gamma = float(_gamma(counts, len(ranks))[0])
    larger = np.searchsorted(_nulls(len(ranks), draws), gamma, side="right")
    return min((larger + 1) / (_NULLS + 1), draws * gamma)


def _gamma(counts: Int[np.ndarray, "sets values"], n: int) -> Float[np.ndarray, "sets"]:
    below = np.cumsum(counts, axis=1)[:, :-1]
    z = np.arange(1, counts.shape[1]) / counts.shape[1]
    low = bdtr(below, n, z)
    high = np.where(below > 0, bdtrc(np.maximum(below - 1, 0), n, z), 1.0)
    return 2 * np.minimum(low, high).min(axis=1, initial=0.5)


@functools.lru_cache(maxsize=16)
def _nulls(n: int, draws: int) -> Float[np.ndarray, "sets"]:
    """Sorted gammas of uniform ranks."""
    equal = np.full(draws + 1, 1 / (draws + 1))
    return np.sort(_gamma(np.random.default_rng(0).multinomial(n, equal, _NULLS), n))
