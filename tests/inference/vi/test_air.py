"""A small attend, infer, repeat: two glimpses at a strip of pixels, enumerable.

Eslami et al. (2016), "Attend, infer, repeat"; the mix of strategies is that of Becker et al.
(2024), measure-valued early and enumerated late.
"""

import jax
import jax.numpy as jnp
import pytest
from oracles.unbiased import worst_z

from feynkac import ppl
from feynkac.inference import vi
from feynkac.ppl import dist

PLACES, WIDTH = 3, 4
SPRITE = jnp.array([1.0, 0.6])
IMAGE = jnp.array([0.9, 0.7, 1.2, 0.4])
PRESENT = 0.6
PARAMS = {
    "present": jnp.array([0.4, -0.2]),
    "more": jnp.array(0.3),
    "place": jnp.array([[0.2, -0.3, 0.4], [0.0, 0.5, -0.2]]),
}


def drawn(place):
    """The sprite at a place of an empty strip."""
    return jnp.zeros(WIDTH).at[place + jnp.arange(2)].set(SPRITE)


@ppl.program
def look(ctx, logits):
    return drawn(ctx.sample("place", dist.Categorical(logits=logits)))


@ppl.program
def nothing(ctx, logits):
    return jnp.zeros(WIDTH)


GLIMPSE = ppl.cond(look, nothing)


@ppl.program
def glimpses(ctx, odds, places):
    """Two glimpses; the second one only if the first saw something."""
    first = ctx.sample("first", dist.Bernoulli(logits=odds[0]))
    seen = ctx.call("one", GLIMPSE, first == 1, places[0])
    tilt = odds[1] + odds[2] * seen[0]
    second = ctx.sample("second", dist.Bernoulli(logits=jnp.where(first == 1, tilt, -30.0)))
    return seen + ctx.call("two", GLIMPSE, second == 1, places[1])


@ppl.program
def model(ctx):
    odds = jnp.log(PRESENT / (1 - PRESENT)) * jnp.array([1.0, 1.0, 0.0])
    canvas = glimpses(ctx, odds, jnp.zeros((2, PLACES)))
    ctx.observe("image", dist.Normal(canvas, 0.5), IMAGE)


@ppl.program
def guide(ctx, p):
    glimpses(ctx, jnp.append(p["present"], p["more"]), p["place"])


@vi.objective
def elbo(ctx, params):
    return vi.elbo(ctx, ppl.bind(guide, params), ppl.Target(model))


def exact(p):
    """The sum over what is seen: nothing, one sprite, or two."""
    log_place = jax.nn.log_softmax(p["place"])

    def term(log_q, log_p, canvas):
        noise = jnp.sum(-0.5 * ((IMAGE - canvas) / 0.5) ** 2)
        noise -= WIDTH * 0.5 * jnp.log(2 * jnp.pi * 0.25)
        return jnp.exp(log_q) * (log_p + noise - log_q)

    yes, no = jnp.log(PRESENT), jnp.log(1 - PRESENT)
    total = term(jax.nn.log_sigmoid(-p["present"][0]), no, jnp.zeros(WIDTH))
    for a in range(PLACES):
        log_q = jax.nn.log_sigmoid(p["present"][0]) + log_place[0, a]
        tilt = p["present"][1] + p["more"] * drawn(a)[0]
        log_p = yes - jnp.log(float(PLACES))
        total += term(log_q + jax.nn.log_sigmoid(-tilt), log_p + no, drawn(a))
        for b in range(PLACES):
            more = jax.nn.log_sigmoid(tilt) + log_place[1, b]
            both = log_p + yes - jnp.log(float(PLACES))
            total += term(log_q + more, both, drawn(a) + drawn(b))
    return total


MIX = {
    "guide": {
        "first": vi.MeasureValued(),
        "second": vi.Enumerate(),
        "one": vi.Score(vi.Running().after(-8.0)),
        "two": vi.TopK(1),
    }
}


def z_of(strategies):
    truth = jax.value_and_grad(exact)(PARAMS)
    estimator = vi.value_and_grad(elbo, strategies)
    return worst_z(estimator, jax.random.key(11), 20_000, truth, PARAMS)


@pytest.mark.slow
def test_the_mix():
    assert z_of(MIX) < 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy",
    [vi.Enumerate(), vi.Score(vi.Running().after(-8.0)), vi.MeasureValued()],
    ids=["enumeration", "score", "measures"],
)
def test_one_strategy_for_all(strategy):
    assert z_of({"guide": strategy}) < 4
