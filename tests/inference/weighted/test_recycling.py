"""Adaptive multiple importance sampling: mixture of all iterations, and what it does not keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac import inference, ppl
from feynkac.inference.weighted import (
    AdaptiveMultipleImportance,
    Locations,
    PopulationMonteCarlo,
    Stacked,
)
from feynkac.ppl import dist
from feynkac.ppl.laws.proper_weighting import weighting
from feynkac.ppl.laws.result import decide
from feynkac.ppl.status import DEAD

KEY = jax.random.key(47)
SCORES = jnp.array([0.0, 2.0, -jnp.inf, 1.0])
PRIOR = np.array([0.7, 0.1, 0.1, 0.1])
ROWS = np.array([[0.1, 0.2, 0.3, 0.4], [0.4, 0.4, 0.1, 0.1]])


@ppl.program
def peaks(ctx, scores):
    x = ctx.sample("x", dist.Categorical(probs=jnp.asarray(PRIOR, float)))
    ctx.factor("fit", scores[x])


def _row(ctx, probs, scores):
    ctx.sample("x", dist.Categorical(probs=probs))


GUESS = ppl.Proposal(init=_row)
TARGET = ppl.Target(peaks, (SCORES,))


def unmoved(particles):
    return Stacked(GUESS, jnp.asarray(ROWS, float))


def learn(particles):
    w = jnp.exp(particles.log_weights - jnp.max(particles.log_weights))
    w = jnp.where(jnp.isneginf(particles.log_weights), 0.0, w)
    counts = jax.nn.one_hot(particles.choices["x"], 4).T @ w
    probs = 0.8 * counts / jnp.maximum(jnp.sum(counts), 1e-6) + 0.05
    return GUESS.bind(probs / jnp.sum(probs))


def test_without_learning_weights_are_those_of_the_mixture():
    """To the last digit; and so properly weighted."""
    algorithm = AdaptiveMultipleImportance(2, 3, unmoved)
    runs = jax.jit(jax.vmap(lambda k: algorithm.run(k, TARGET)))(jax.random.split(KEY, 2**13))
    x, log_w = np.asarray(runs.choices["x"]), np.asarray(runs.log_weights)
    assert x.shape == log_w.shape == (2**13, 6)
    gamma = PRIOR * np.exp(np.asarray(SCORES))
    mixture = (PRIOR + 2 * ROWS.mean(0)) / 3
    np.testing.assert_allclose(np.exp(log_w), (gamma / mixture)[x], rtol=1e-5)
    z_hat = np.exp(np.asarray(runs.log_evidence, np.float64))
    np.testing.assert_allclose(z_hat, np.exp(log_w).mean(1), rtol=1e-5)
    assert abs(z_hat.mean() - gamma.sum()) < 4 * z_hat.std(ddof=1) / np.sqrt(len(z_hat))


@pytest.mark.slow
def test_learning_is_biased():
    """What it says of itself: with few draws the evidence is not unbiased."""
    exact = inference.exact.enumerate(TARGET)
    algorithm = AdaptiveMultipleImportance(2, 3, learn)
    assert not decide("", weighting(algorithm, TARGET, exact), KEY, 2**14, "")


@ppl.program
def far(ctx):
    x = ctx.sample("x", dist.Normal(0.0, 1.0))
    ctx.observe("y", dist.Normal(x, 0.1), 3.0)


def _gaussian(ctx, mean, scale):
    ctx.sample("x", dist.Normal(mean, scale))


def fit(particles):
    w = jax.nn.softmax(particles.log_weights)
    mean = jnp.sum(w * particles.choices["x"])
    variance = jnp.sum(w * (particles.choices["x"] - mean) ** 2)
    return ppl.bind(ppl.Proposal(init=_gaussian), mean, jnp.sqrt(variance) + 0.05)


@pytest.mark.slow
def test_it_learns_from_all_draws():
    """A posterior in the prior's tail; more is left of the draws than by their own proposals."""
    target = ppl.Target(far)
    out = AdaptiveMultipleImportance(400, 6, fit).run(KEY, target)
    log_z = dist.Normal(0.0, np.sqrt(1.01)).log_prob(3.0)
    assert abs(float(out.log_evidence - log_z)) < 0.05 and out.status
    assert abs(float(out.expectation(lambda c: c["x"])) - 3.0 / 1.01) < 0.02
    apart = PopulationMonteCarlo(400, 6, fit).run(KEY, target)
    assert out.ess > 1.3 * apart.ess


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="from two on"):
        AdaptiveMultipleImportance(4, 1, learn)
    many = AdaptiveMultipleImportance(4, 2, Locations(GUESS))
    with pytest.raises(ValueError, match="use a multiple"):
        jax.eval_shape(lambda k: many.run(k, TARGET).log_weights, KEY)


@pytest.mark.slow
def test_all_may_die():
    target = ppl.Target(peaks, (jnp.full(4, -jnp.inf),))
    dead = AdaptiveMultipleImportance(4, 2, learn).run(KEY, target)
    assert int(dead.status.code) == DEAD and np.isneginf(dead.log_weights).all()
