"""MMD and C2ST: chance for one law, exact values of small kernels, power for another law."""

import sys

import jax
import numpy as np
import pytest

from feynkac.inference.diagnostics import c2st, mmd

KEY = jax.random.key(5)


def test_mmd_is_the_definition():
    x, y = np.random.default_rng(0).normal(size=(2, 7, 3))
    y = y[:5]

    def kernel(a, b):
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / (2 * 1.3**2))

    xx, yy = kernel(x, x), kernel(y, y)
    wanted = (xx.sum() - 7) / 42 + (yy.sum() - 5) / 20 - 2 * kernel(x, y).mean()
    result = mmd(KEY, x, y, bandwidth=1.3, permutations=19)
    assert abs(result.squared - wanted) < 1e-5
    pooled = np.concatenate([x, y])
    distances = np.sqrt(((pooled[:, None] - pooled[None]) ** 2).sum(-1))
    median = np.median(distances[np.triu_indices(12, 1)])
    assert abs(mmd(KEY, x, y, permutations=19).bandwidth - median) < 1e-4


def test_mmd_p_values():
    generator = np.random.default_rng(1)
    sets = generator.normal(size=(60, 2, 40, 2))
    keys = jax.random.split(KEY, 60)
    p = np.array([mmd(keys[i], *sets[i], permutations=99).p_value for i in range(60)])
    # Uniform on multiples of 1/100: mean 0.505, deviation 0.289.
    assert abs(p.mean() - 0.505) < 4 * 0.289 / np.sqrt(60)
    assert mmd(KEY, sets[0, 0], sets[0, 1] * 0.4, permutations=99).p_value == 0.01


def test_c2st():
    x, y = np.random.default_rng(2).normal(size=(2, 200, 1))
    same, other = c2st(x, y), c2st(x, y + 2)
    # A fold's accuracy has deviation 1/2 / sqrt(80).
    assert abs(same.accuracy - 0.5) < 4 * 0.5 / np.sqrt(400) and same.draws == 200
    # The best classifier between N(0, 1) and N(2, 1) is right with probability 0.841.
    assert abs(other.accuracy - 0.841) < 4 * np.sqrt(0.841 * 0.159 / 400)
    assert len(other.folds) == 5


def test_errors(monkeypatch):
    x = np.zeros((4, 2))
    with pytest.raises(ValueError, match="same d"):
        mmd(KEY, x, np.zeros((4, 3)))
    with pytest.raises(ValueError, match="not finite"):
        mmd(KEY, x, x + np.nan)
    with pytest.raises(ValueError, match="leave some out"):
        c2st(x, x[:3])
    monkeypatch.setitem(sys.modules, "sklearn.exceptions", None)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        c2st(x, x)
