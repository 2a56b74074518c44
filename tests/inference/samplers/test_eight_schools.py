"""Eight schools as a NumPyro model, in two parameterisations, against quadrature."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest

from feynkac.inference import Repeat, mcmc, samplers
from feynkac.ppl import dist, select
from feynkac.ppl.from_numpyro import from_numpyro

KEY = jax.random.key(31)
EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools(errors, effects, centred):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", 8):
        if centred:
            theta = numpyro.sample("theta", dist.Normal(mu, tau))
        else:
            theta = mu + tau * numpyro.sample("eta", dist.Normal(0.0, 1.0))
        numpyro.deterministic("effect", theta)
        numpyro.sample("y", dist.Normal(theta, errors), obs=effects)


@functools.cache
def truth():
    """Log evidence, E[mu], E[log tau], E[effect of the first school], by quadrature over log tau.

    Given tau all is Gaussian: y_j ~ N(mu, tau^2 + s_j^2), mu ~ N(0, 25).
    """
    u = np.linspace(-14.0, 12.0, 200_001)
    tau = np.exp(u)
    spread = tau[:, None] ** 2 + ERRORS**2
    precision = (1 / spread).sum(1) + 1 / 25
    mean = (EFFECTS / spread).sum(1) / precision
    log_y = -0.5 * np.log(2 * np.pi * spread).sum(1) - 0.5 * (EFFECTS**2 / spread).sum(1)
    log_y += 0.5 * precision * mean**2 - 0.5 * np.log(25 * precision)
    log_prior = np.log(2 / (np.pi * 5)) - np.log1p((tau / 5) ** 2) + u
    log_joint = log_y + log_prior
    top = log_joint.max()
    w = np.exp(log_joint - top)
    z = w.sum()
    effect = (mean * ERRORS[0] ** 2 + EFFECTS[0] * tau**2) / spread[:, 0]
    values = np.stack([mean, u, effect])
    return np.array([top + np.log(z * (u[1] - u[0])), *(values @ w / z)])


def gym(errors, effects):
    """The same data under the priors of the package inference-gym."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    log_tau = numpyro.sample("log_tau", dist.Normal(5.0, 1.0))
    with numpyro.plate("schools", 8):
        theta = numpyro.sample("theta", dist.Normal(mu, jnp.exp(log_tau)))
        numpyro.sample("y", dist.Normal(theta, errors), obs=effects)


# E[mu], E[log tau], E[effect of the first school]: its ground truth 0.0.5 (Stan) with its errors.
GYM = np.array([5.75975286, 2.45326549, 14.76492662])
GYM_ERRORS = np.array([0.01786934, 0.00191274, 0.02467777])


def model(centred):
    return from_numpyro(
        schools, jnp.asarray(ERRORS, jnp.float32), jnp.asarray(EFFECTS, jnp.float32), centred
    )


def measure(sampler, centred, runs):
    """Per run: log evidence and three means; and the standard error that the run claims."""
    target = model(centred)

    def one(key):
        if hasattr(sampler, "measured"):
            result = sampler.measured(key, target)
            p, claimed = result.particles, result.log_evidence_error
        else:
            p, claimed = sampler.run(key, target), jnp.zeros(())

        def values(c):
            theta = c["theta"][0] if centred else c["mu"] + c["tau"] * c["eta"][0]
            return jnp.stack([c["mu"], jnp.log(c["tau"]), theta])

        return jnp.concatenate([p.log_evidence[None], p.expectation(values), claimed[None]])

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(KEY, runs)), np.float64)


HMC = Repeat(mcmc.HMC(~select(), 0.35, 4), 2)
WALK = Repeat(mcmc.RandomWalk(~select(), 0.5), 10)
CASES = {
    "tempered": (samplers.Tempered(512, HMC, samplers.Power(8, 3.0)), False),
    "centred": (samplers.Tempered(512, WALK, samplers.Power(8, 3.0)), True),
    "waste-free": (samplers.WasteFree(1024, HMC, 32, samplers.Power(6, 3.0)), False),
    "persistent": (samplers.Persistent(256, WALK, samplers.Power(6, 3.0)), False),
    "nested": (samplers.NestedSampling(100, WALK, 10, max_batches=120), False),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_against_quadrature(name):
    sampler, centred = CASES[name]
    runs = 16
    values = measure(sampler, centred, runs)
    error = values.std(0, ddof=1) / np.sqrt(runs)
    z = (values.mean(0) - [*truth(), 0.0])[:4] / error[:4]
    assert (np.abs(z) < 4).all(), z
    assert (error[:4] < [0.06, 0.3, 0.15, 0.4]).all(), error
    if name in ("waste-free", "nested"):
        assert 0.6 < values[:, 4].mean() / values[:, 0].std(ddof=1) < 1.6


@pytest.mark.slow
def test_against_inference_gym():
    """Adaptive exponents, centred; the random walk's scales fitted to the population."""

    def tune(kernel, seen):
        _, spread = seen.moments()
        scale = 0.7 * jnp.concatenate(
            [spread["log_tau"][None], spread["mu"][None], spread["theta"]]
        )
        return Repeat(mcmc.RandomWalk(~select(), scale), kernel.times)

    data = (jnp.asarray(x, jnp.float32) for x in (ERRORS, EFFECTS))
    target = from_numpyro(gym, *data)
    stages = samplers.AdaptiveStages(0.5, max_stages=16)
    walk = Repeat(mcmc.RandomWalk(~select(), jnp.ones(10)), 15)
    sampler = samplers.Tempered(1024, walk, stages, tune=tune)

    def one(key):
        p = sampler.run(key, target)
        means = p.expectation(lambda c: jnp.stack([c["mu"], c["log_tau"], c["theta"][0]]))
        return means, p.status.code

    means, codes = jax.jit(jax.vmap(one))(jax.random.split(KEY, 16))
    means = np.asarray(means, np.float64)
    assert (codes == 0).all()
    error = np.hypot(means.std(0, ddof=1) / 4, GYM_ERRORS)
    z = (means.mean(0) - GYM) / error
    assert (np.abs(z) < 4).all(), z
    assert (error < [0.3, 0.05, 0.4]).all(), error
