"""Strategies mixed, where sites may be, against `jax.grad` of sums over all outcomes by hand."""

import itertools

import jax
import jax.numpy as jnp
import pytest
from oracles.unbiased import worst_z

from feynkac import ppl
from feynkac.inference import vi
from feynkac.ppl import dist

PARAMS = {
    "a": jnp.array(0.3),
    "c": jnp.array([0.4, -0.4, 0.1]),
    "chain": jnp.array([0.2, -0.5]),
    "each": jnp.array([0.6, -0.3]),
}


@ppl.program
def coloured(ctx, logits):
    return ctx.sample("c", dist.Categorical(logits=logits)).astype(float)


@ppl.program
def nothing(ctx, logits):
    return jnp.zeros(())


@ppl.program
def flip(ctx, before, shift):
    x = ctx.sample("x", dist.Bernoulli(logits=shift + before)).astype(float)
    return x, None


@ppl.program
def toss(ctx, logit):
    return ctx.sample("x", dist.Bernoulli(logits=logit))


@ppl.program
def guide(ctx, params):
    """A switch, a colour only if it is on, a chain of two and two independent tosses."""
    a = ctx.sample("a", dist.Bernoulli(logits=params["a"]))
    c = ctx.call("colour", ppl.cond(coloured, nothing), a == 1, params["c"])
    ctx.call("chain", ppl.scan(flip), c, params["chain"])
    ctx.call("each", ppl.vmap(toss), params["each"])


def energy(a, c, chain, each):
    """The log density of the target, without the guide's."""
    tosses = each[0] * 0.7 - each[1] * a * 0.5
    return 0.4 * a + 0.5 * c - chain[0] * chain[1] + 0.8 * chain[1] * c + tosses + 0.3 * each[0] * c


@vi.objective
def objective(ctx, params):
    x, log_q = ctx.draw("guide", guide, params)
    reals = jax.tree.map(lambda leaf: leaf.astype(float), x)
    a, c = reals["a"], reals["colour"]["true"]["c"]
    return energy(a, c, reals["chain"]["x"], reals["each"]["x"]) - log_q


def exact(params):
    """The sum over 2 * 3 * 4 * 4 outcomes; the colour is 0 where there is none."""

    def bernoulli(logit, x):
        return jax.nn.log_sigmoid(logit) if x else jax.nn.log_sigmoid(-logit)

    total = jnp.zeros(())
    colours = jax.nn.log_softmax(params["c"])
    for a, x0, x1, y0, y1 in itertools.product((0, 1), repeat=5):
        for c in (0, 1, 2) if a else (0,):
            log_q = bernoulli(params["a"], a) + (colours[c] if a else 0.0)
            log_q += bernoulli(params["chain"][0] + c, x0) + bernoulli(params["chain"][1] + x0, x1)
            log_q += bernoulli(params["each"][0], y0) + bernoulli(params["each"][1], y1)
            total += jnp.exp(log_q) * (energy(float(a), float(c), (x0, x1), (y0, y1)) - log_q)
    return total


MIXED = {
    "guide": {
        "a": vi.Enumerate(),
        "colour": vi.TopK(1),
        "chain": vi.Enumerate(instances=1),
        "each": vi.MeasureValued(),
    }
}


def z_of(strategies, **options):
    estimator = vi.value_and_grad(objective, strategies, **options)
    truth = jax.value_and_grad(exact)(PARAMS)
    return worst_z(estimator, jax.random.key(0), 4000, truth, PARAMS)


def test_mixed_strategies_in_calls_cond_scan_and_vmap():
    assert z_of(MIXED) < 4


@pytest.mark.slow
def test_selections_in_calls_cond_scan_and_vmap():
    strategies = [
        (ppl.select(("guide", "a"), ("guide", "chain")), vi.Score(vi.Running().after(1.0))),
        (ppl.select(("guide", "colour"), ("guide", "each")), vi.Enumerate()),
    ]
    assert z_of(strategies) < 4
