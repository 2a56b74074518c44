"""Corrected answers of a network that is far off: the fallback from the prior, and finetuning."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from feynkac import ppl
from feynkac.inference import vi
from feynkac.models.amortized.correct import correct
from feynkac.models.amortized.finetune import finetune

KEY = jax.random.key(0)


@ppl.program
def conjugate(ctx):
    m = ctx.sample("m", dist.Normal(0.0, 1.0))
    ctx.sample("y", dist.Normal(m, 0.5))


Y = 1.0
TARGET = ppl.Target(conjugate, (), {"y": jnp.asarray(Y)})
LOG_Z = -0.5 * Y**2 / 1.25 - 0.5 * np.log(2 * np.pi * 1.25)
MEAN, VARIANCE = 0.8, 0.2


def network(loc, scale):
    """A guide that stands for a network with this law."""

    @ppl.program
    def guide(ctx):
        ctx.sample("m", dist.Normal(loc, scale))

    return guide


def estimates(run):
    """Z-hat / Z, and Z-hat / Z times the mean and second moment, by weight."""
    weights = np.exp(np.asarray(run.log_weights, np.float64) - LOG_Z)
    m = np.asarray(run.choices["m"], np.float64)
    return np.array([weights.mean(), (weights * m).mean(), (weights * m**2).mean()])


EXACT = np.array([1.0, MEAN, MEAN**2 + VARIANCE])


def z_scores(rows):
    rows = np.asarray(rows)
    return (rows.mean(axis=0) - EXACT) / (rows.std(axis=0, ddof=1) / np.sqrt(len(rows)))


@pytest.mark.slow
def test_a_bad_network_falls_back_to_the_prior():
    """Far off and narrow: tempered SMC answers, properly weighted, and the status says why."""
    bad, rows = network(-3.0, 0.1), []
    for key in jax.random.split(KEY, 30):
        run = correct(key, bad, TARGET, 40, pilot=100)
        assert run.fell_back
        rows.append(estimates(run))
    assert "by the fallback Tempered, because" in run.status.message
    assert run.status and not run.pilot.ok or run.pilot_ess < 0.05
    assert np.abs(z_scores(rows)).max() < 4, z_scores(rows)


@pytest.mark.slow
def test_a_few_steps_at_one_target_make_a_guide_better():
    """From a posterior of other data: finetuned, the effective sample size is near the draws."""
    start = vi.guides.mean_field(TARGET, scale=1.0, init={"m": jnp.asarray(-0.3)})
    fit = finetune(KEY, start, TARGET, steps=150, particles=128, learning_rate=0.05, progress=False)
    before = correct(KEY, start, TARGET, 400)
    after = correct(KEY, fit.params, TARGET, 400)
    assert after.pilot_ess > 0.95 > before.pilot_ess + 0.2
    assert abs(after.log_evidence - LOG_Z) < 0.05
