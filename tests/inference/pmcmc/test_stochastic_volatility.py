"""Stochastic volatility: particle Gibbs, PMMH and a large filter agree within standard errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac import ppl
from feynkac.inference import MCMC, SMC, Systematic
from feynkac.inference.pmcmc import PMMH, Parametric, ParticleGibbs
from feynkac.ppl import dist

KEY = jax.random.key(107)
LENGTH = 25
NOISE = 0.4


@ppl.program
def persistence(ctx):
    return ctx.sample("rho", dist.Uniform(0.0, 0.99))


def _init(ctx, rho, ys):
    return jnp.zeros(())


def _step(ctx, x, t, rho, ys):
    x = ctx.sample("x", dist.Normal(rho * x, NOISE))
    ctx.observe("y", dist.Normal(0.0, jnp.exp(x / 2)), ys[t])
    return x


def data():
    rng = np.random.default_rng(3)
    x, ys = 0.0, []
    for _ in range(LENGTH):
        x = 0.9 * x + NOISE * rng.normal()
        ys.append(np.exp(x / 2) * rng.normal())
    return jnp.asarray(ys, float)


def agree(a, b):
    """Means over independent chains [chains, f], within four standard errors."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    error = np.sqrt(a.var(0, ddof=1) / len(a) + b.var(0, ddof=1) / len(b))
    z = (a.mean(0) - b.mean(0)) / error
    assert (np.abs(z) < 4).all(), z
    return error


def features(x):
    return jnp.stack([x[0], x[12], x[-1], x[12] ** 2, x[11] * x[12]])


@pytest.mark.slow
def test_paths_given_parameters():
    """Ancestor sampling with five particles against the weighted paths of a large filter."""
    model = ppl.StateSpace(_init, _step, LENGTH)
    target = ppl.Target(model, (jnp.asarray(0.9, float), data()))
    kernel = ParticleGibbs(SMC(5, Systematic(ess_threshold=0.8)), ancestor_sampling=True)

    chains = MCMC(kernel, n_chains=16, n_samples=350, burn_in=50).run(KEY, target)
    long = jax.vmap(jax.vmap(features))(chains.choices["x"]).mean(1)

    def large(key):
        return SMC(1000).run(key, target).expectation(lambda c: features(c["x"]))

    keys = jax.random.split(KEY, 16)
    error = agree(long, jax.jit(lambda k: jax.lax.map(large, k))(keys))
    assert (error < 0.1).all()


@pytest.mark.slow
def test_parameters():
    """PMMH against the evidence of a large filter on a grid of parameters."""
    model = Parametric(persistence, ppl.StateSpace(_init, _step, LENGTH), (data(),))

    def propose(ctx, params):
        ctx.sample("rho", dist.TruncatedNormal(params["rho"], 0.3, low=0.0, high=0.99))

    pmmh = PMMH(SMC(40), propose)

    def long(key):
        draws = pmmh.run(key, model, 400)
        rho = draws.choices["rho"][100:]
        return jnp.stack([rho.mean(), (rho**2).mean()])

    got = np.asarray(jax.jit(jax.vmap(long))(jax.random.split(KEY, 16)))
    grid = (np.arange(24) + 0.5) / 24 * 0.99
    levels = jax.jit(
        lambda rhos: jax.lax.map(lambda r: SMC(1000).run(KEY, model.at(r)).log_evidence, rhos)
    )(jnp.asarray(grid, float))
    w = np.exp(np.asarray(levels, np.float64) - np.max(levels))
    want = np.array([w @ grid, w @ grid**2]) / w.sum()
    # What the filter on the grid leaves open: its noise is some percent a point, of one mean.
    error = np.hypot(got.std(0, ddof=1) / 4, 0.01)
    assert (np.abs((got.mean(0) - want) / error) < 4).all(), (got.mean(0), want, error)
    assert (error < 0.03).all()
