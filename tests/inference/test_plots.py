"""The figure shows the run; ArviZ gets the same draws."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure
from small_models import hmm

from feynkac import inference, ppl

N, LENGTH = 12, 8


@pytest.fixture(scope="module")
def particles():
    return inference.SMC(N).run(jax.random.key(0), hmm(LENGTH))


def test_the_figure_has_every_edge_and_every_history(particles, tmp_path):
    figure = particles.plot()
    genealogy, size, evidence = figure.axes
    segments = [seg for lines in genealogy.collections[:2] for seg in lines.get_segments()]
    assert len(segments) == N * LENGTH
    drawn = {tuple(np.ravel(seg).astype(int)) for seg in segments}
    ancestors = np.asarray(particles.ancestors)
    wanted = {(t, ancestors[t, i], t + 1, i) for t in range(LENGTH) for i in range(N)}
    assert drawn == wanted
    survivors = genealogy.collections[1].get_segments()
    last = [seg for seg in survivors if seg[1][0] == LENGTH]
    assert len(last) == N  # the final population is all of it alive
    parents = {int(seg[0][1]) for seg in survivors if seg[0][0] == 0}
    assert len(parents) == int(particles.unique_ancestors()[0])
    np.testing.assert_allclose(size.lines[0].get_ydata(), particles.ess_history)
    assert size.get_ylim()[0] == 0 and size.get_ylim()[1] >= N
    np.testing.assert_allclose(evidence.lines[0].get_ydata(), particles.log_evidence_history)
    marks = sorted(line.get_xdata()[0] for line in genealogy.lines)
    assert marks == [t + 0.5 for t in np.flatnonzero(particles.resampled)]
    figure.savefig(tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 10_000


def test_axes_of_the_user(particles):
    figure = Figure()
    assert particles.plot(figure.subplots(3)) is figure
    with pytest.raises(ValueError, match="three axes"):
        particles.plot(figure.subplots(2))


def test_one_run_at_a_time(particles):
    batch = jax.tree.map(lambda x: x[None], particles)
    with pytest.raises(ValueError, match="pick one"):
        batch.plot()
    with pytest.raises(ValueError, match="pick one"):
        batch.to_arviz()


def test_importing_inference_imports_no_matplotlib():
    code = "import sys, feynkac.inference.plots as p; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_arviz_round_trip(particles):
    data = particles.to_arviz(jax.random.key(3))
    index = data.sample_stats["particle"].values[0]
    assert data.posterior["z"].shape == (1, N, LENGTH)
    np.testing.assert_array_equal(data.posterior["z"].values[0], particles.choices["z"][index])
    log_weights = data.sample_stats["log_weight"].values[0]
    np.testing.assert_array_equal(log_weights, particles.log_weights)
    assert (log_weights[index] > -np.inf).all()
    np.testing.assert_array_equal(data.sample_stats["length"].values[0], LENGTH)
    log_z = np.logaddexp.reduce(log_weights.astype(float)) - np.log(N)
    np.testing.assert_allclose(data.posterior.attrs["log_evidence"], log_z, rtol=1e-5)


def test_arviz_refuses_what_has_no_draws(particles):
    dead = jax.tree.map(lambda x: x, particles)
    object.__setattr__(dead, "log_evidence", jax.numpy.asarray(-jax.numpy.inf))
    with pytest.raises(ValueError, match="no draws"):
        dead.to_arviz()
    last = inference.SMC(N, record=inference.Record.last()).run(jax.random.key(0), hmm(LENGTH))
    with pytest.raises(ValueError, match="recorded no choices"):
        last.to_arviz()


def test_missing_packages_name_the_extra(particles, monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match=r"feynkac\[plots\]"):
        particles.to_arviz()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"feynkac\[plots\]"):
        particles.plot()


def test_nested_choices_are_named_by_address():
    def inner(ctx):
        return ctx.sample("b", ppl.dist.Normal(0.0, 1.0))

    def outer(ctx):
        return ctx.call("a", ppl.program(inner))

    run = inference.Importance(4).run(jax.random.key(0), ppl.program(outer))
    assert list(run.to_arviz().posterior.data_vars) == ["a/b"]


def test_a_notebook_shows_the_figure(particles):
    assert particles.plot()._repr_png_().startswith(b"\x89PNG")
