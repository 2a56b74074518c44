"""Predictive draws and checks, against a conjugate model."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest

from feynkac import inference, ppl
from feynkac.inference import samplers
from feynkac.ppl import dist
from feynkac.ppl.from_numpyro import from_numpyro

KEY = jax.random.key(8)
Y = jnp.array([1.0, 2.0, 3.0, 6.0])
N = 4096


@ppl.program
def noise(ctx, mu):
    ctx.sample("y", dist.Normal(mu, 1.0))


@ppl.program
def model(ctx):
    mu = ctx.sample("mu", dist.Normal(0.0, 2.0))
    ctx.call("data", ppl.vmap(noise), jnp.broadcast_to(mu, (4,)))
    return mu


def numpyro_model(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    numpyro.factor("nothing", 0.0)
    with numpyro.plate("data", 4):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


PROGRAM = ppl.Target(model, (), {"data": {"y": Y}})
NUMPYRO = from_numpyro(numpyro_model, Y)
# Posterior of mu: precision 4 + 1/4, mean 12 / 4.25.
MEAN, VARIANCE = 12 / 4.25, 1 / 4.25


def data(choices):
    return choices["data"]["y"] if "data" in choices else choices["y"]


def z(values, mean, variance):
    values = np.asarray(values, float)
    error = np.sqrt(variance / len(values))
    spread = variance * np.sqrt(2 / len(values))
    return np.array([(values.mean() - mean) / error, (values.var() - variance) / spread])


@pytest.mark.parametrize("target", [PROGRAM, NUMPYRO], ids=["program", "numpyro"])
@pytest.mark.slow
def test_prior_and_posterior(target):
    prior = samplers.predictive(KEY, None, target, N)
    assert data(prior.choices).shape == (N, 4)
    assert np.abs(z(data(prior.choices)[:, 0], 0.0, 5.0)).max() < 4
    mu = MEAN + np.sqrt(VARIANCE) * jax.random.normal(KEY, (N,))
    new = samplers.predictive(KEY, {"mu": mu}, target)
    assert (new.choices["mu"] == mu).all()
    assert np.abs(z(data(new.choices)[:, 3], MEAN, 1 + VARIANCE)).max() < 4
    particles = inference.Importance(N).run(KEY, target)
    few = samplers.predictive(KEY, particles, target, 500)
    assert data(few.choices).shape == (500, 4)
    assert abs(float(few.choices["mu"].mean()) - MEAN) < 0.2  # of IS draws that repeat
    check = samplers.predictive_check(KEY, particles, target, lambda c: data(c).max())
    assert (check.observed == 6.0).all()
    # P(max of four N(mu, 1) > 6), mu from the posterior.
    rng = np.random.default_rng(0)
    many = MEAN + np.sqrt(VARIANCE) * rng.normal(size=(200_000, 1)) + rng.normal(size=(200_000, 4))
    assert abs(float(check.p_value) - (many.max(1) > 6).mean()) < 0.02


def test_some_data_known():
    """Instances that were drawn stay as they are, constrained ones are drawn."""
    some = ppl.Partial(Y, jnp.array([True, True, False, False]))
    target = ppl.Target(model, (), {"data": {"y": some}})
    particles = inference.Importance(64).run(KEY, target)
    new = samplers.predictive(KEY, particles.choices, target)
    kept, drawn = (np.asarray(data(x.choices)) for x in (particles, new))
    assert (kept[:, 2:] == drawn[:, 2:]).all()
    assert (kept[:, :2] != drawn[:, :2]).all()


def test_errors():
    with pytest.raises(ValueError, match="prior need their number"):
        samplers.predictive(KEY, None, PROGRAM)
    draws = {"mu": jnp.zeros(3)}
    with pytest.raises(ppl.ProgramError, match="nothing of"):
        samplers.predictive_check(KEY, draws, PROGRAM, lambda c: data(c).max())
