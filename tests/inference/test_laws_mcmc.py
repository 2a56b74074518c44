"""Kernels leave their target invariant: lengths vary, branches flip, a filter runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import tiny_models as tiny

from feynkac import inference, ppl
from feynkac.inference import MH, SMC, Repeat
from feynkac.ppl import dist, laws
from feynkac.ppl.laws.invariance import OnTraces, moving
from feynkac.ppl.laws.proper_weighting import weighting
from feynkac.ppl.laws.result import decide

KEY = jax.random.key(41)


@pytest.fixture(scope="module")
def endings():
    return [inference.exact.enumerate(tiny.text(tiny.MILD, tiny.Ending(r))) for r in (False, True)]


def test_texts_of_varying_length(endings):
    """A suffix from a start that is data, and everything."""
    exact = endings[1]
    for start in range(tiny.LENGTH):
        kernel = OnTraces(MH(ppl.select("token")[jnp.int32(start) :]), exact.target)
        decide("MH", moving(kernel, exact, None, 2), KEY, 2**15, "").check()
    decide("MH", moving(OnTraces(MH(~ppl.select()), exact.target), exact), KEY, 2**15, "").check()


@ppl.program
def left(ctx, p):
    a = ctx.sample("a", dist.Bernoulli(probs=p))
    b = ctx.sample("b", dist.Bernoulli(probs=0.3))
    return a + 2 * b


@ppl.program
def right(ctx, p):
    return ctx.sample("a", dist.Bernoulli(probs=1 - p))


@ppl.program
def branching(ctx, p):
    which = ctx.sample("which", dist.Bernoulli(probs=0.4))
    value = ctx.call("part", ppl.cond(left, right), which == 1, p)
    ctx.factor("fit", jnp.array([0.0, 0.9, -0.7, 1.2])[value])


def test_branches_that_flip():
    target = ppl.Target(branching, (jnp.asarray(0.7, float),))
    for selection in (ppl.select("which"), ppl.select("which", ("part", "true", "a"))):
        laws.invariance(KEY, MH(selection), target, runs=2**15, steps=2).check()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [inference.Systematic, inference.Killing])
@pytest.mark.parametrize("reject", [False, True])
def test_rejuvenation_keeps_weights_proper(kind, reject, endings):
    """Lengths change; unfinished particles are weighed after the last move."""
    exact = endings[reject]
    smc = SMC(2, tiny.resampler(kind, 0.9), kernel=Repeat(MH(ppl.select("token")[1:]), 2))
    decide("rejuvenation", weighting(smc, exact.target, exact), KEY, 2**13, "").check()


@pytest.mark.slow
def test_what_a_kernel_does_to_a_run():
    target = tiny.text()
    p = SMC(256, tiny.resampler(inference.SSP), kernel=MH(~ppl.select())).run(KEY, target)
    tokens, lengths = np.asarray(p.choices["token"]), np.asarray(p.lengths)
    ended = tokens == tiny.END
    np.testing.assert_array_equal(lengths, np.where(ended.any(1), ended.argmax(1) + 1, 3))
    rates = np.asarray(p.acceptance)
    assert ((rates > 0) & (rates <= 1)).all()
    later = np.arange(3) >= lengths[:, None]
    assert (tokens[later] == 0).all()


def test_repeat_nothing():
    target = tiny.text()
    trace = target.model.simulate(KEY, *target.args)
    same = Repeat(MH(~ppl.select()), 0)(KEY, target, trace)
    jax.tree.map(np.testing.assert_array_equal, same.choices, trace.choices)
    assert same.score == trace.score
    with pytest.raises(ValueError, match="at least 0"):
        Repeat(MH(ppl.select("token")), -1)


@ppl.program
def mixed(ctx, y):
    k = ctx.sample("k", dist.Bernoulli(probs=0.4))
    x = ctx.sample("x", dist.Normal(jnp.where(k == 1, 1.0, -0.5), 0.8))
    ctx.observe("y", dist.Normal(x, 1.0), y)


def test_continuous_and_discrete():
    """After Geweke (2004): parameters and data keep their joint law when parameters move."""
    kernel = Repeat(MH(~ppl.select()), 3)

    def one(key):
        k1, k2, k3 = jax.random.split(key, 3)
        trace = mixed.simulate(k1, jnp.zeros(()))
        y = trace.choices["x"] + jax.random.normal(k2)
        trace, _ = mixed.generate(k3, trace.choices, y)
        moved = kernel(k3, ppl.Target(mixed, (y,)), trace)
        x, k = moved.choices["x"], moved.choices["k"].astype(float)
        return jnp.stack([k, x, x * x, k * x, x * y, k * y, x * x * y]), trace.choices["x"] != x

    values, changed = jax.jit(jax.vmap(one))(jax.random.split(KEY, 2**14))
    values = np.asarray(values)
    ex, exx = 0.4 - 0.3, 0.64 + 0.4 + 0.6 * 0.25
    exxx = 0.4 * (1 + 3 * 0.64) + 0.6 * (-0.125 - 1.5 * 0.64)
    want = np.array([0.4, ex, exx, 0.4, exx, 0.4, exxx])
    z = (values.mean(0) - want) / (values.std(0, ddof=1) / np.sqrt(len(values)))
    assert (np.abs(z) < 4).all(), z
    assert changed.mean() > 0.5
