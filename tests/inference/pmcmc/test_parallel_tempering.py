"""Parallel tempering leaves the product of the tempered posteriors invariant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import tiny_models as tiny

from feynkac import inference, ppl
from feynkac.inference import MH
from feynkac.inference.pmcmc import ParallelTempering

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
