"""One report: exact passes, defects are named, there is a picture, weights are judged."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac import inference
from feynkac.inference.diagnostics import report
from feynkac.ppl import dist

from .conjugate import DEFECTS, Estimator, pair

KEY = jax.random.key(9)


def run(estimator):
    return report(KEY, pair, estimator, ["y"], 500, batch=500)


def test_exact_passes_with_text_and_picture(tmp_path):
    result = run(Estimator()).check()
    assert result.ok and result.khats is None and result.failed == 0
    text = result.text()
    assert "no defect found" in text and "TARP" in text and "95% regions hold 9" in text
    figure = result.plot()
    assert len(figure.axes) == 6
    figure.savefig(tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 20_000


@pytest.mark.parametrize("name", DEFECTS)
def test_defects_are_rejected(name):
    result = run(DEFECTS[name])
    assert not result.ok and result.calibration.p_value < 1e-3 and result.tarp.p_value < 1e-3
    with pytest.raises(AssertionError, match="NOT CALIBRATED"):
        result.check()
    if name == "prior only":
        values = result.calibration.p_values()
        assert min(values["x[0]"], values["x[1]"]) > 1e-3 > values["log density"]


def test_failed_posteriors_fail_the_report():
    result = report(KEY, pair, Estimator(width=np.nan), ["y"], 50, batch=500)
    assert result.failed == 50 and result.p_value == 0


class Network(eqx.Module):
    """Draws from the posterior, made wider, and tells their density."""

    width: jax.Array

    def sample(self, key, data, draws):
        noise = self.width * jnp.sqrt(0.2) * jax.random.normal(key, (draws, 2))
        return {"x": 0.8 * data["y"][None] + noise}

    def log_prob(self, data, choices):
        law = dist.Normal(0.8 * data["y"], self.width * jnp.sqrt(0.2)).to_event(1)
        return jax.vmap(law.log_prob)(choices["x"])


@pytest.mark.slow
def test_networks_are_judged_by_their_densities_too():
    good = report(KEY, pair, Network(jnp.asarray(1.02)), ["y"], 100, batch=100).check()
    assert len(good.khats) == 100 and (good.khats < 0.7).mean() > 0.9
    # Half as wide as the target: the weights have no variance.
    bad = report(KEY, pair, Network(jnp.asarray(0.5)), ["y"], 100, batch=100)
    assert not bad.ok and np.median(bad.khats) > 0.5


@pytest.mark.slow
def test_weights_are_judged():
    result = report(KEY, pair, inference.Importance(1000), ["y"], 200, draws=19).check()
    assert len(result.khats) == 200 and np.median(result.khats) < 0.7
    assert "median k-hat" in result.text() and len(result.plot().axes) == 6
