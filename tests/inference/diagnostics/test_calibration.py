"""Exact posteriors pass simulation-based calibration; planted defects are found, by name."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac import inference, ppl
from feynkac.inference.diagnostics import Calibration, sbc
from feynkac.ppl import dist

KEY = jax.random.key(53)


@ppl.program
def model(ctx):
    """A conjugate pair, and a coin."""
    x = ctx.sample("x", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    coin = ctx.sample("coin", dist.Bernoulli(probs=0.3))
    ctx.sample("y", dist.Normal(x, 0.5).to_event(1))
    ctx.sample("face", dist.Bernoulli(probs=jnp.where(coin == 1, 0.9, 0.2)))


class Posterior(eqx.Module):
    """Ninety-nine draws from the closed form, or from what a defect makes of it, as data."""

    shift: jax.Array
    width: jax.Array
    ignore: jax.Array

    def __call__(self, key, target):
        y, face = target.constraints["y"], target.constraints["face"]
        keys = jax.random.split(key)
        mean = (1 - self.ignore) * 0.8 * y + self.shift
        scale = self.width * jnp.sqrt((1 - self.ignore) * 0.2 + self.ignore)
        x = mean[None] + scale * jax.random.normal(keys[0], (99, 2))
        on = 0.3 * jnp.where(face == 1, 0.9, 0.1)
        off = 0.7 * jnp.where(face == 1, 0.2, 0.8)
        on = jnp.where(self.ignore > 0, 0.3, on / (on + off))
        return {"x": x, "coin": jax.random.bernoulli(keys[1], on, (99,)).astype(jnp.int32)}


def calibration(shift=0.0, width=1.0, ignore=0.0, key=KEY):
    defect = Posterior(*(jnp.asarray(x, float) for x in (shift, width, ignore)))
    return sbc(key, model, defect, ["y", "face"], runs=1000, batch=1000)


def test_exact_posteriors_pass():
    result = calibration().check()
    assert set(result.ranks) == {"x[0]", "x[1]", "coin", "log density"}
    assert result.draws == 99 and result.failed == 0
    for ranks in result.ranks.values():
        assert ranks.shape == (1000,) and ranks.min() >= 0 and ranks.max() <= 99
    levels = np.linspace(0.05, 0.95, 10)
    error = np.sqrt(levels * (1 - levels) / 1000)
    for name in ("log density", "x[0]"):
        assert (np.abs(result.coverage(levels, name) - levels) < 4 * error + 0.01).all()
    # P-values are uniform over repetitions: none of forty is tiny, not all are large.
    p = [v for i in range(10) for v in calibration(key=jax.random.key(i)).p_values().values()]
    assert min(p) > 1e-4 and 0.25 < np.mean(p) < 0.75


@pytest.mark.parametrize(
    ("defect", "said", "where"),
    [
        ((0.15, 1.0, 0.0), "draws are too high", "x"),
        ((-0.15, 1.0, 0.0), "draws are too low", "x"),
        ((0.0, 0.75, 0.0), "draws are too narrow", "x"),
        ((0.0, 1.35, 0.0), "draws are too wide", "x"),
    ],
)
def test_planted_defects_are_found(defect, said, where):
    result = calibration(*defect)
    with pytest.raises(AssertionError, match=said):
        result.check()
    values = result.p_values()
    assert values["x[0]"] < 1e-5 and values["coin"] > 1e-4
    central = result.coverage([0.5], "x[0]")[0]
    if said.endswith("narrow"):
        assert central < 0.46
    if said.endswith("wide"):
        assert central > 0.54


def test_an_algorithm_that_ignores_the_data():
    """Every marginal is calibrated; the log density is not."""
    result = calibration(ignore=1.0)
    values = result.p_values()
    assert min(values["x[0]"], values["x[1]"], values["coin"]) > 1e-4
    assert values["log density"] < 1e-6
    with pytest.raises(AssertionError, match="log density"):
        result.check()


@pytest.mark.slow
def test_of_a_population():
    """Importance sampling with many particles passes, with few it does not."""
    good = sbc(KEY, model, inference.Importance(4000), ["y", "face"], 500, draws=19)
    good.check()
    bad = sbc(KEY, model, inference.Importance(10), ["y", "face"], 500, draws=19)
    assert bad.p_value < 1e-6


def weighs(ctx):
    ctx.observe("y", dist.Normal(0.0, 1.0), 1.0)


def test_failed_runs_and_errors():
    result = Calibration({"a": np.arange(100)}, 99, 1)
    assert result.p_value == 0 and "1 failed runs" in result.report()
    with pytest.raises(ppl.ProgramError, match="some, not all"):
        sbc(KEY, model, inference.Importance(5), ["z"], 10)
    with pytest.raises(ppl.ProgramError, match="observe"):
        sbc(
            KEY,
            lambda ctx: ctx.observe("y", dist.Normal(0.0, 1.0), 1.0),
            inference.Importance(5),
            ["y"],
            10,
        )
