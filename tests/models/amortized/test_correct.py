"""Corrected answers: proper weighting by z-score whatever the network is, and the way out."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from feynkac import inference, ppl
from feynkac.models.amortized.correct import correct

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


def test_weights_are_proper_where_some_pilots_fail():
    """A network off and too wide, whose pilots have about the least size: half fall back."""
    bad, rows, fell = network(0.0, 0.8), [], []
    prior = inference.Importance(60)
    for key in jax.random.split(KEY, 120):
        run = correct(key, bad, TARGET, 60, pilot=60, least=0.4, fallback=prior)
        rows.append(estimates(run))
        fell.append(run.fell_back)
        assert run.fell_back == (not run.pilot.ok or run.pilot_ess < 0.4)
    assert 10 < sum(fell) < 110, sum(fell)
    assert np.abs(z_scores(rows)).max() < 4, z_scores(rows)


def test_a_good_network_is_used_and_says_so():
    run = correct(KEY, network(MEAN, 1.1 * np.sqrt(VARIANCE)), TARGET, 400, defensive=0.1)
    assert not run.fell_back and run.inside and run.status
    assert "by the network" in run.status.message
    assert run.ess > 0.8 * 400
    assert abs(run.log_evidence - LOG_Z) < 0.05
    # Weights of the mixture are bounded by the likelihood over the share.
    top = -0.5 * np.log(2 * np.pi * 0.25) - np.log(0.1)
    assert run.log_weights.max() <= top + 1e-5
