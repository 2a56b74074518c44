"""Independent runs, their leave-one-out baselines, and sub-objectives, against sums by hand."""

import itertools

import jax
import jax.numpy as jnp
import pytest
from oracles.unbiased import worst_z

from feynkac import ppl
from feynkac.inference import vi
from feynkac.ppl import dist

N = 3
LOGITS = jnp.array([0.3, -0.2, 0.5])
TARGET = jnp.array([-1.0, 0.4, 0.1])


@ppl.program
def categories(ctx, logits):
    ctx.sample("x", dist.Categorical(logits=logits))


@ppl.program
def model(ctx):
    x = ctx.sample("x", dist.Categorical(logits=jnp.zeros(3)))
    ctx.factor("y", TARGET[x])


def guide():
    return ppl.bind(categories, LOGITS)


def exact(guide):
    """E log of the mean of N weights, over 3^N draws."""
    log_q = jax.nn.log_softmax(guide.bound[0])
    log_w = TARGET - jnp.log(3.0) - log_q
    total = jnp.zeros(())
    for draws in itertools.product(range(3), repeat=N):
        x = jnp.array(draws)
        value = jax.nn.logsumexp(log_w[x]) - jnp.log(float(N))
        total += jnp.exp(jnp.sum(log_q[x])) * value
    return total


def z_of(strategy, n=20_000):
    truth = jax.value_and_grad(exact)(guide())
    # A strategy for the draw "guide" is one for each draw of that name inside "particles".
    estimator = vi.value_and_grad(vi.iwelbo(N), {"guide": {"x": strategy}})
    return worst_z(estimator, jax.random.key(1), n, truth, guide(), ppl.Target(model))


def test_vimco():
    assert z_of(vi.Score(vi.LeaveOneOut())) < 4


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [vi.Enumerate(instances=2), vi.TopK(1)])
def test_strategies_inside_many(strategy):
    assert z_of(strategy) < 4


@ppl.program
def coin(ctx, logit):
    ctx.sample("b", dist.Bernoulli(logits=logit))


def _coin(ctx, logit):
    x, log_q = ctx.draw("coin", coin, logit)
    return x["b"].astype(float), log_q


@vi.objective
def layered(ctx, params):
    """A toss shifts the odds of two times two more; the middle is not linear."""
    first, log_q = ctx.call("first", _coin, params["first"])

    def row(ctx):
        xs, log_qs = ctx.many("cell", 2, _coin, params["cell"] + first)
        return jnp.exp(0.5 * jnp.mean(xs)) - 0.1 * jnp.sum(log_qs)

    rows = ctx.many("row", 2, row)
    return jnp.prod(rows) + 0.2 * first - log_q


def layered_exact(params):
    def log_prob(logit, x):
        return jax.nn.log_sigmoid(logit) if x else jax.nn.log_sigmoid(-logit)

    total = jnp.zeros(())
    for first, a, b, c, d in itertools.product((0, 1), repeat=5):
        log_first = log_prob(params["first"], first)
        cells = [log_prob(params["cell"] + first, x) for x in (a, b, c, d)]
        rows = [
            jnp.exp(0.5 * (x + y) / 2) - 0.1 * (p + q)
            for x, y, p, q in ((a, b, *cells[:2]), (c, d, *cells[2:]))
        ]
        value = rows[0] * rows[1] + 0.2 * first - log_first
        total += jnp.exp(log_first + sum(cells)) * value
    return total


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategies",
    [
        {"first": vi.Enumerate(), "coin": vi.Score(vi.LeaveOneOut())},
        {"first": vi.Score(), "row": {"cell": vi.Enumerate(instances=2)}},
    ],
    ids=["leave one out", "enumerate"],
)
def test_nested_runs(strategies):
    params = {"first": jnp.array(0.4), "cell": jnp.array(-0.3)}
    truth = jax.value_and_grad(layered_exact)(params)
    estimator = vi.value_and_grad(layered, strategies)
    assert worst_z(estimator, jax.random.key(2), 20_000, truth, params) < 4
