"""Parallel tempering leaves the product of the tempered posteriors invariant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import tiny_models as tiny

from feynkac import inference, ppl
from feynkac.inference import MH
from feynkac.inference.pmcmc import ParallelTempering, stepping_stone, thermodynamic

KEY = jax.random.key(79)
EXPONENTS = [0.2, 0.6, 1.0]


@pytest.mark.slow
def test_product_is_invariant():
    """Started at independent draws of each, each is still one; swaps happen."""
    target = tiny.text(tiny.HARSH)
    tempering = ParallelTempering(MH(ppl.select("token")[1:]), EXPONENTS)
    exact = [inference.exact.enumerate(target.tempered(b)) for b in EXPONENTS]
    log_probs = jnp.asarray(np.stack([e.log_probs for e in exact]), float)
    choices = exact[0].choices

    def one(key):
        key_start, key_run = jax.random.split(key)
        starts = jax.vmap(jax.random.categorical)(jax.random.split(key_start, 3), log_probs)
        taken = jax.tree.map(lambda x: x[starts], choices)

        def trace(choices):
            return target.model.run(None, target.joined(choices), target.args).trace()

        ladder = tempering.start(jax.vmap(trace)(taken))
        swapped = []
        for i in range(3):
            ladder = tempering.step(jax.random.fold_in(key_run, i), target, ladder)
            swapped.append(ladder.swapped)
        return ladder.traces.choices, jnp.stack(swapped)

    runs = 2**14
    after, swapped = jax.jit(jax.vmap(one))(jax.random.split(KEY, runs))
    rate = np.asarray(swapped).mean(0)
    assert (np.isnan(rate) == [[False, True], [True, False], [False, True]]).all()
    assert ((rate > 0.02) & (rate < 1))[~np.isnan(rate)].all()

    def features(c):
        hits = jax.nn.one_hot(c["token"], 3).ravel()
        mood = c["mood"].astype(float)
        return jnp.concatenate([mood[None], hits, mood * hits, hits[:3, None].ravel() * hits[3:6]])

    values = np.asarray(jax.vmap(jax.vmap(features))(after), np.float64)
    for k, posterior in enumerate(exact):
        want = posterior.expectation(features)
        error = np.sqrt(np.maximum(want * (1 - want), 1e-12) / runs)
        common = (want * runs > 20) & ((1 - want) * runs > 20)
        z = (values[:, k].mean(0) - want) / error
        assert (np.abs(z[common]) < 4).all(), (EXPONENTS[k], z)
        assert (values[:, k].mean(0)[want == 0] == 0).all()


@pytest.mark.slow
def test_a_run_from_the_prior():
    target = tiny.text(tiny.MILD)
    exact = inference.exact.enumerate(target)
    tempering = ParallelTempering(MH(~ppl.select()), EXPONENTS)

    def one(key):
        out = tempering.run(key, target, 60, keep=lambda c: c["mood"].astype(float))
        return out.kept[20:].mean(), out.swaps, out.log_likelihood

    means, swaps, heat = jax.jit(jax.vmap(one))(jax.random.split(KEY, 512))
    means = np.asarray(means)
    want = exact.expectation(lambda c: c["mood"])
    assert abs(means.mean() - want) < 4 * means.std(ddof=1) / np.sqrt(512)
    assert (np.asarray(swaps) > 0).all() and np.isfinite(np.asarray(heat)[:, 30:]).all()


def test_one_power_and_none():
    with pytest.raises(ValueError, match="at least one power"):
        ParallelTempering(MH(ppl.select("token")), jnp.zeros(0))


@ppl.program
def _centre(ctx):
    mu = ctx.sample("mu", ppl.dist.Normal(0.0, 1.0))
    ctx.observe("y", ppl.dist.Normal(mu, 0.6).expand([3]).to_event(1), jnp.array([0.4, 1.5, 1.1]))


def test_evidence_of_the_rungs():
    """Means over independent runs against quadrature; batch means against what runs differ by."""
    powers = np.array([0.0, 0.03, 0.12, 0.35, 1.0])
    runs, moves = 48, 1600
    tempering = ParallelTempering(MH(ppl.select("mu")), powers)

    def one(key):
        run = tempering.run(key, ppl.Target(_centre), moves)
        return thermodynamic(run, discard=100), stepping_stone(run, discard=100)

    trapezoid, stones = jax.jit(jax.vmap(one))(jax.random.split(KEY, runs))

    mu = np.linspace(-6, 6, 4001)
    ys = np.array([0.4, 1.5, 1.1])
    log_l = (-0.5 * ((ys - mu[:, None]) / 0.6) ** 2 - np.log(0.6 * np.sqrt(2 * np.pi))).sum(1)
    prior = np.exp(-0.5 * mu**2) / np.sqrt(2 * np.pi)
    weighed = prior * np.exp(np.outer(powers, log_l))
    means = (weighed @ log_l) / weighed.sum(1)
    level = np.log(weighed[-1].sum() * (mu[1] - mu[0]))
    gaps = np.diff(powers)
    rule = (gaps * (means[1:] + means[:-1]) / 2).sum()
    low, high = (gaps * means[:-1]).sum(), (gaps * means[1:]).sum()
    assert low < rule < level < high and level - rule > 0.1

    def z(values, want):
        values = np.asarray(values, np.float64)
        return (values.mean(0) - want) / (values.std(0, ddof=1) / np.sqrt(len(values)))

    assert abs(z(stones.log_evidence, level)) < 4
    assert (
        abs(z(trapezoid.log_evidence, rule)) < 4 and (np.abs(z(trapezoid.means, means)) < 4).all()
    )
    assert abs(z(trapezoid.lower, low)) < 4 and abs(z(trapezoid.upper, high)) < 4
    np.testing.assert_allclose(stones.parts.sum(1), stones.log_evidence, rtol=1e-5)
    for out in (trapezoid, stones):
        truth = np.asarray(out.log_evidence).std(ddof=1)
        assert 0.6 < np.sqrt(np.mean(np.asarray(out.standard_error) ** 2)) / truth < 1.6
    with pytest.raises(ValueError, match="two powers or more"):
        jax.eval_shape(lambda k: stepping_stone(tempering.run(k, ppl.Target(_centre), 3)), KEY)
