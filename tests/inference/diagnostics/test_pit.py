"""Uniform for exact predictives, not for wrong ones; paired differences cover the KL divergence."""

import numpy as np
import pytest
from scipy import stats

from feynkac.inference.diagnostics import paired, pit


def test_continuous_and_discrete():
    generator = np.random.default_rng(0)
    y = generator.normal(size=2000)
    exact = pit(stats.norm.cdf(y)).check()
    assert abs(exact.coverage([0.5])[0] - 0.5) < 4 * 0.5 / np.sqrt(2000)
    narrow, shifted = pit(stats.norm.cdf(y, scale=0.85)), pit(stats.norm.cdf(y, loc=0.2))
    assert narrow.p_value < 1e-3 and shifted.p_value < 1e-3
    with pytest.raises(AssertionError, match="spread 1.0"):
        narrow.check()
    k = generator.poisson(1.5, 2000)
    pit(stats.poisson.cdf(k, 1.5), stats.poisson.cdf(k - 1, 1.5)).check()
    assert pit(stats.poisson.cdf(k, 1.5)).p_value < 1e-6  # not randomized
    assert pit(stats.poisson.cdf(k, 1.8), stats.poisson.cdf(k - 1, 1.8)).p_value < 1e-3


def test_paired_differences_are_the_divergence():
    """E[log p - log q] under p = KL(N(0, 1), N(0.3, 1)) = 0.045; intervals cover it."""
    y = np.random.default_rng(1).normal(size=(400, 100, 3))
    ours, exact = -stats.norm.logpdf(y, 0.3), -stats.norm.logpdf(y)
    results = [paired(a, b) for a, b in zip(ours, exact, strict=True)]
    covered = np.mean([r.low < 0.045 < r.high for r in results])
    assert abs(covered - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 400)
    assert "100 data sets" in repr(results[0])


def test_errors():
    with pytest.raises(ValueError, match="one value a data set"):
        pit(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="NaN"):
        pit(np.array([0.5, np.nan]))
    with pytest.raises(ValueError, match="of one shape"):
        paired(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="data sets \\[1\\]"):
        paired(np.array([0.0, np.inf, 1.0]), np.zeros(3))
