"""Bands and rates against closed forms."""

import numpy as np
import pytest

from feynkac.inference.search import accuracy_at, paired_bands, rate_ratio, scaling_rate


def test_bands_cover_and_are_paired():
    rng = np.random.default_rng(0)
    base = rng.random((400, 1)) < 0.3
    right = np.repeat(base, 3, axis=1).astype(float)
    bands = paired_bands({"a": right, "b": 0.5 * right}, draws=4000)
    a, b = bands["a"], bands["b"]
    error = right.mean() * (1 - right.mean())
    half = 1.96 * np.sqrt(error / 400)
    np.testing.assert_allclose([a.high - a.mean, a.mean - a.low], half, rtol=0.1)
    np.testing.assert_allclose(b.draws, 0.5 * a.draws)  # the same problems in each draw
    with pytest.raises(ValueError, match="same problems"):
        paired_bands({"a": right, "b": right[:10]})


def test_rates_of_lines_are_their_slopes():
    tokens = 100.0 * 2 ** np.arange(4)
    accuracy = np.array([0.2 + 0.05 * k for k in range(4)])
    assert scaling_rate(accuracy, tokens) == pytest.approx(0.05)
    # Every problem on a line of the same slope, so that the bootstrap has no noise in the ratio.
    right = np.random.default_rng(1).random((50, 1)) + np.arange(4) * 0.05
    bands = paired_bands({"a": right, "b": 3 * right}, draws=200)
    one, low, high = rate_ratio(bands["b"], tokens, bands["a"], 10 * tokens)
    assert one == pytest.approx(3) and low == pytest.approx(3) and high == pytest.approx(3)
    assert accuracy_at(accuracy, tokens, 100 * 2**1.5) == pytest.approx(0.275)
    assert np.isnan(accuracy_at(accuracy, tokens, 10.0))
