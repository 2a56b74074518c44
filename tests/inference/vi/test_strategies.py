"""Every strategy alone, on a chain of two sites, against sums over all outcomes by hand."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import pytest
from oracles.unbiased import worst_z

from feynkac import ppl
from feynkac.inference import vi
from feynkac.ppl import dist

PARAMS = {"a": jnp.array(0.4), "c": jnp.array([0.3, -0.5, 0.2]), "shift": jnp.array(0.7)}
ENERGY = jnp.array([[0.2, -0.4, 0.9], [1.1, 0.3, -0.6]])


@ppl.program
def guide(ctx, p):
    a = ctx.sample("a", dist.Bernoulli(logits=p["a"]))
    tilt = p["shift"] * a.astype(float) * jnp.arange(3.0)
    ctx.sample("c", dist.Categorical(logits=p["c"] + tilt))


@ppl.program
def model(ctx):
    a = ctx.sample("a", dist.Bernoulli(0.5))
    c = ctx.sample("c", dist.Categorical(jnp.full(3, 1 / 3)))
    ctx.factor("energy", ENERGY[a, c])


def exact(guide):
    p = guide.bound[0]
    total = jnp.zeros(())
    for a in (0, 1):
        colours = jax.nn.log_softmax(p["c"] + p["shift"] * a * jnp.arange(3.0))
        log_q = jax.nn.log_sigmoid(p["a"] if a else -p["a"]) + colours
        total += jnp.sum(jnp.exp(log_q) * (ENERGY[a] - jnp.log(6.0) - log_q))
    return total


def z_of(strategy, objective=vi.elbo, n=20_000, **options):
    params = ppl.bind(guide, PARAMS)
    truth = jax.value_and_grad(exact)(params)
    estimator = vi.value_and_grad(objective, strategy, **options)
    return worst_z(estimator, jax.random.key(0), n, truth, params, ppl.Target(model))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "samples"),
    [
        (vi.Score(), 1),
        (vi.Score(vi.Running().after(-0.9)), 1),
        (vi.Score(vi.LeaveOneOut()), 3),
        (vi.Enumerate(), 1),
        (vi.TopK(2), 1),
        (vi.MeasureValued(), 1),
    ],
    ids=["score", "running", "leave one out", "enumerate", "top 2", "measures"],
)
def test_each_strategy(strategy, samples):
    assert z_of(strategy, samples=samples) < 4


class TooMuch(vi.Enumerate):
    """Two per cent too much."""

    biased: ClassVar[bool] = False

    def report(self, key, d, value, log_prob):
        report = super().report(key, d, value, log_prob)
        return type(report)(None, report.values, report.weights * 1.02)


class Forgotten(vi.Score):
    """A site whose term is left out."""

    def report(self, key, d, value, log_prob):
        return None


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [TooMuch(), Forgotten()], ids=["two per cent", "no term"])
def test_a_planted_error_is_rejected(wrong):
    """Of the gradient without the guide's score, which has less noise."""
    assert z_of({"guide": wrong}, vi.path_elbo, 200_000) > 5


@pytest.mark.slow
def test_the_gradient_without_the_guides_score():
    assert z_of(vi.Enumerate(), vi.path_elbo) < 4
