"""Stochastic volatility: evidence and smoothing means beside the library `particles`.

The numbers and their standard errors are stored; `benchmarks/volatility_reference.py` makes them.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from feynkac import inference, ppl
from feynkac.ppl import dist

STORED = json.loads(
    (Path(__file__).parents[1] / "oracles" / "volatility_particles.json").read_text()
)
RUNS, N = 24, 2048


def init(ctx, rho, noise, ys):
    x = ctx.sample("first", dist.Normal(0.0, noise / jnp.sqrt(1 - rho**2)))
    ctx.observe("y_first", dist.Normal(0.0, jnp.exp(x / 2)), ys[0])
    return x


def step(ctx, x, t, rho, noise, ys):
    x = ctx.sample("x", dist.Normal(rho * x, noise))
    ctx.observe("y", dist.Normal(0.0, jnp.exp(x / 2)), ys[t + 1])
    return x


def test_evidence_and_means_are_those_of_particles():
    ys = jnp.asarray(STORED["ys"], float)
    rho, noise = (jnp.asarray(STORED[name], float) for name in ("rho", "noise"))
    times = jnp.asarray(STORED["times"], jnp.int32)
    target = ppl.Target(ppl.StateSpace(init, step, len(ys) - 1), (rho, noise, ys))

    def run(key):
        p = inference.SMC(N).run(key, target)
        means = p.expectation(lambda c: jnp.concatenate([c["first"][None], c["x"]])[times])
        return p.log_evidence, means

    keys = jax.random.split(jax.random.key(0), RUNS)
    levels, means = jax.jit(lambda keys: jax.lax.map(run, keys))(keys)
    ratios = np.exp(np.asarray(levels, np.float64) - STORED["log_evidence"])
    error = np.hypot(ratios.std(ddof=1) / np.sqrt(RUNS), STORED["log_evidence_error"])
    assert error < 0.03
    assert abs(ratios.mean() - 1) < 4 * error
    means = np.asarray(means, np.float64)
    reference, between = (np.array(STORED["smoothed"][k]) for k in ("mean", "error"))
    errors = np.hypot(means.std(0, ddof=1) / np.sqrt(RUNS), between)
    assert errors.max() < 0.04 and np.abs(reference).max() > 10 * errors.max()
    assert (np.abs(means.mean(0) - reference) < 4 * errors).all()
