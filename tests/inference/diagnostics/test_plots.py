"""The figures show the numbers they are of."""

import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from small_models import hmm

from feynkac import inference
from feynkac.inference import diagnostics
from feynkac.inference.diagnostics import Calibration

N, LENGTH = 60, 6


@pytest.fixture(scope="module")
def particles():
    return inference.SMC(N).run(jax.random.key(0), hmm(LENGTH))


def test_weights(particles, tmp_path):
    spread = eqx.tree_at(
        lambda p: p.log_weights, particles, jnp.linspace(-9.0, 0.0, N).at[3].set(-jnp.inf)
    )
    figure = diagnostics.plot_weights(spread)
    left, right = figure.axes
    bars = [p for p in left.patches if p.get_label() != "by weight"]
    assert sum(b.get_height() for b in bars if hasattr(b, "get_height")) == N - 1
    assert "1 of weight zero" in left.get_title(loc="left")
    x, share = right.lines[0].get_data()
    w = np.sort(np.exp(np.delete(np.linspace(-9, 0, N), 3)))[::-1]
    np.testing.assert_allclose(share[:-1], np.cumsum(w) / w.sum(), rtol=1e-4)
    assert len(x) == N and share[-1] == share[-2]
    size = w.sum() ** 2 / (w**2).sum()
    np.testing.assert_allclose(right.lines[2].get_xdata()[0], size, rtol=1e-4)
    figure.savefig(tmp_path / "weights.png")
    assert (tmp_path / "weights.png").stat().st_size > 10_000
    dead = eqx.tree_at(lambda p: p.log_weights, particles, jnp.full(N, -jnp.inf))
    with pytest.raises(ValueError, match="no weights to show"):
        diagnostics.plot_weights(dead)
    with pytest.raises(ValueError, match="pick one"):
        diagnostics.plot_weights(jax.tree.map(lambda x: x[None], particles))


def test_history(particles):
    axes = Figure().subplots(2)
    figure = diagnostics.plot_history(particles, axes)
    assert figure is axes[0].figure
    np.testing.assert_allclose(axes[0].lines[0].get_ydata(), particles.ess_history)
    np.testing.assert_allclose(axes[1].lines[0].get_ydata(), particles.log_evidence_history)
    path = jnp.linspace(0.2, 1.0, LENGTH + 1)
    annealed = eqx.tree_at(lambda p: p.exponents, particles, path, is_leaf=lambda x: x is None)
    figure = diagnostics.plot_history(annealed)
    assert len(figure.axes) == 3
    np.testing.assert_allclose(figure.axes[2].lines[0].get_ydata(), path)
    assert figure._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="drawn on 3 axes"):
        diagnostics.plot_history(annealed, axes)


def test_calibration():
    rng = np.random.default_rng(0)
    ranks = {"good": rng.integers(0, 20, 400), "log density": rng.integers(5, 15, 400)}
    result = Calibration(ranks, 19, 0)
    first, middle, right = result.plot().axes
    assert "worst: log density" in first.get_title(loc="left")
    counts = first.patches[0].get_data().values
    np.testing.assert_array_equal(counts, np.bincount(ranks["log density"], minlength=20))
    x, gap = middle.lines[0].get_data()
    below = [(ranks["log density"] < r).mean() for r in range(21)]
    np.testing.assert_allclose(gap, np.array(below) - x)
    levels, covered = right.lines[1].get_data()
    np.testing.assert_allclose(covered, result.coverage(levels))


def test_importing_diagnostics_imports_no_plotting_library():
    code = "import sys, feynkac.inference.diagnostics as d; assert not {'matplotlib', 'arviz'} & "
    subprocess.run([sys.executable, "-c", code + "set(sys.modules)"], check=True)


def test_missing_packages_name_the_extra(particles, monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match=r"feynkac\[plots\]"):
        diagnostics.psis(np.random.default_rng(0).normal(size=100))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"feynkac\[plots\]"):
        diagnostics.plot_weights(particles)
