"""Schedules, statuses, errors and what compiles; data annealing against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compile_count import compiles

from feynkac import inference, ppl
from feynkac.inference import MH, Repeat, samplers
from feynkac.inference.samplers import AdaptiveStages, Exponents, Geometric, Linear, Power
from feynkac.ppl import dist
from feynkac.ppl.status import BUDGET, DEAD, NAN

KEY = jax.random.key(29)
MOVE = Repeat(MH(~ppl.select()), 3)


@ppl.program
def gauss(ctx, y, penalty):
    x = ctx.sample("x", dist.Normal(0.0, 3.0))
    ctx.observe("y", dist.Normal(x, 0.05), y)
    ctx.factor("penalty", penalty)


def target(y=1.0, penalty=0.0):
    return ppl.Target(gauss, (jnp.asarray(y), jnp.asarray(penalty)))


def sampler(ess=0.5, max_stages=12):
    return samplers.Tempered(256, MOVE, AdaptiveStages(ess=ess, max_stages=max_stages))


def test_adaptive_exponents():
    """A sharp likelihood in a few stages; too few, the dead and NaN are told, by one program."""
    p = sampler().run(KEY, target())
    betas = np.asarray(p.exponents)
    steps = int((betas < 1).sum())
    assert 3 <= steps < 12 and betas[-1] == 1 and (np.diff(betas) >= 0).all()
    assert (np.diff(betas[: steps + 1]) > 0).all() and p.status
    log_z = dist.Normal(0.0, np.sqrt(9.0025)).log_prob(1.0)
    assert abs(p.log_evidence - log_z) < 0.5
    # Each stage halves the effective size, and resampling restores it.
    sizes = np.asarray(p.ess_history)[1 : steps + 1]
    assert np.asarray(p.resampled)[: steps - 1].all()
    assert (np.abs(sizes[:-1] / 256 - 0.5) < 0.01).all()

    tight, dead, broken = sampler(0.999), target(penalty=-jnp.inf), target(penalty=jnp.nan)
    other = jax.random.key(30)
    with compiles() as count:
        spent = tight.run(KEY, target(2.0))
        died = sampler().run(KEY, dead)
        wrong = sampler().run(other, broken)
    assert count.count == 0, count.names
    assert spent.status.code == BUDGET and spent.exponents[-1] == 1
    assert np.isfinite(spent.log_evidence)
    assert died.status.code == DEAD and died.status.step == -1
    assert died.log_evidence == -jnp.inf
    assert wrong.status.code == NAN and "observe or factor" in wrong.status.message
    with pytest.raises(inference.InferenceError, match="max_stages"):
        tight.run(KEY, target(), throw=True)
    with pytest.raises(inference.InferenceError, match="all particles died"):
        sampler().run(KEY, dead, throw=True)


def test_schedules():
    np.testing.assert_allclose(Linear(4).exponents(), [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(Power(2, 3.0).exponents(), [0.125, 1.0])
    np.testing.assert_allclose(Geometric(3, 1e-2).exponents(), [0.01, 0.1, 1.0], rtol=1e-6)
    for kind in (Linear, Power, Geometric):
        assert kind(1).exponents()[-1] == 1 and kind(7).exponents()[-1] == 1
    for bad, message in (
        ([0.5, 0.9], "append 1"),
        ([0.0, 1.0], "above 0"),
        ([0.6, 0.5, 1], "sort"),
    ):
        with pytest.raises(ValueError, match=message):
            Exponents(jnp.array(bad))
    with pytest.raises(ValueError, match="not both"):
        AdaptiveStages(ess=0.5, cess=0.9)
    with pytest.raises(ValueError, match="at least one stage"):
        Linear(0)


def test_errors():
    adaptive = sampler()
    for call in (
        lambda: adaptive.random_weighted(KEY, target()),
        lambda: adaptive.estimate_logpdf(KEY, target(), {"x": jnp.array(0.0)}),
    ):
        with pytest.raises(ValueError, match="Linear, Power"):
            call()
    nuts = samplers.Tempered(4, inference.mcmc.NUTS(ppl.select("x"), 0.1), Linear(2))
    with pytest.raises(ValueError, match="reversed"):
        nuts.run_conditional(KEY, target(), {"x": jnp.array(0.0)})
    with pytest.raises(NotImplementedError, match="Tempered"):
        samplers.WasteFree(4, MOVE, 2).random_weighted(KEY, target())
    with pytest.raises(ValueError, match="multiple"):
        samplers.WasteFree(5, MOVE, 2)
    with pytest.raises(ValueError, match="ess="):
        samplers.Persistent(4, MOVE, AdaptiveStages(cess=0.9))
    with pytest.raises(ValueError, match="at least one"):
        samplers.NestedSampling(4, MOVE, 4)
    with pytest.raises(ppl.ProgramError, match="one instance an observation"):
        samplers.DataAnnealing(4, MOVE, 2).run(KEY, target())
    with pytest.raises(ppl.ProgramError, match="Proposal"):
        step = ppl.Proposal(lambda ctx, state, t, y, p: None)
        samplers.Tempered(4, MOVE, Linear(2), proposal=step).run(KEY, target())


@ppl.program
def noise(ctx, mu):
    ctx.sample("y", dist.Normal(mu, 1.0))


@ppl.program
def conjugate(ctx):
    mu = ctx.sample("mu", dist.Normal(0.0, 2.0))
    ctx.call("data", ppl.vmap(noise), jnp.broadcast_to(mu, (12,)))


def test_data_annealing_gives_predictive_densities():
    """Batches of three, moved where resampled; against the conjugate recursion."""
    y = np.random.default_rng(1).normal(1.5, 1.0, 12)
    parts = samplers.DataAnnealing(512, MOVE, 4, lazy=True)
    data = ppl.Target(conjugate, (), {"data": {"y": jnp.asarray(y, jnp.float32)}})

    @jax.jit
    def several(keys):
        def one(key):
            p = parts.run(key, data)
            return samplers.incremental_log_evidence(p), p.expectation(lambda c: c["mu"])

        return jax.vmap(one)(keys)

    increments, mu = map(np.asarray, several(jax.random.split(KEY, 32)))
    want, mean, variance = [], 0.0, 4.0
    for part in y.reshape(4, 3):
        total = 0.0
        for value in part:
            total += -0.5 * (
                np.log(2 * np.pi * (variance + 1)) + (value - mean) ** 2 / (variance + 1)
            )
            gain = variance / (variance + 1)
            mean, variance = mean + gain * (value - mean), variance * (1 - gain)
        want.append(total)
    ratios = np.exp(increments - np.array(want))
    error = ratios.std(0, ddof=1) / np.sqrt(32)
    assert (np.abs(ratios.mean(0) - 1) < 4 * error + 1e-3).all() and (error < 0.05).all()
    assert abs(mu.mean() - mean) < 4 * mu.std(ddof=1) / np.sqrt(32) + 1e-3


def test_tuning():
    """A kernel's scale fitted to the population at every stage."""

    def tune(kernel, seen):
        _, spread = seen.moments()
        return inference.mcmc.RandomWalk(kernel.selection, 2.4 * spread["x"])

    far = inference.mcmc.RandomWalk(ppl.select("x"), 50.0)
    p = samplers.Tempered(128, far, Power(12, 4.0), tune=tune).run(KEY, target())
    assert 0.2 < p.acceptance[-1] < 0.7
    assert abs(p.expectation(lambda c: c["x"]) - 1.0) < 0.02
