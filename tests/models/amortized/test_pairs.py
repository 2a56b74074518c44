"""Pairs tell the variance of the truth, also for a predictor that ignores data; reasoning gaps."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac.models.amortized import train
from feynkac.models.amortized.icl import Bernoulli, Gaussian
from feynkac.models.amortized.icl_tasks import Task
from feynkac.models.amortized.locality import (
    LocalChain,
    LocalLoss,
    conditionals,
    estimate,
    scaffolded,
)
from feynkac.models.amortized.pairs import cheating, epistemic, in_context, unsure
from feynkac.models.amortized.priors import Bandit

KEY = jax.random.key(2)


class Exact(eqx.Module):
    """The optimal predictor of a bandit, in the form of a network's."""

    task: Task
    head: Bernoulli

    def mean(self, x, y):
        return self.task.mean(x, y)


def test_in_context_pairs_are_the_posterior_variance():
    task = Task(Bandit(2, 1.5, 1.0), 8)
    x, y = task.sample(KEY)
    query = jnp.array([0.0, 1.0])
    answer = in_context(Exact(task, Bernoulli()), x, y, query)
    a = 1.5 + float(np.asarray(x)[:, 1] @ np.asarray(y))
    b = 1.0 + float(np.asarray(x)[:, 1] @ (1 - np.asarray(y)))
    variance = a * b / ((a + b) ** 2 * (a + b + 1))
    np.testing.assert_allclose(answer.probabilities, [b / (a + b), a / (a + b)], atol=1e-5)
    np.testing.assert_allclose(answer.deviation, np.sqrt(variance), atol=1e-4)
    np.testing.assert_allclose(answer.covariance[0, 1], -variance, atol=1e-5)
    assert unsure(answer, 0.01) and not unsure(answer, 0.5)
    with pytest.raises(TypeError, match="binary"):
        in_context(Exact(task, Gaussian()), x, y, query)


def test_an_underfitting_predictor_that_cheats_well_knows_what_it_does_not_know():
    """It rounds its input: calibrated at second order over what it treats alike."""
    generator = np.random.default_rng(0)
    n = 200_000
    x = generator.uniform(size=n)
    truth = 0.2 + 0.6 * np.sin(3 * x) ** 2
    one, two = generator.uniform(size=(2, n)) < truth
    cell = (4 * x).astype(int)
    alone = np.array([one[cell == c].mean() for c in range(4)])
    after = np.array([[two[(cell == c) & (one == v)].mean() for v in (0, 1)] for c in range(4)])
    first, second = np.stack([1 - alone, alone], -1), np.stack([1 - after, after], -1)
    answer = epistemic(jnp.asarray(first, float), jnp.asarray(second, float))
    wanted = np.array([truth[cell == c].var() for c in range(4)])
    # An estimate of q(1, 1) - q(1)^2 from n / 4 pairs has a deviation below 1/4 / sqrt(n / 4).
    np.testing.assert_allclose(answer.covariance[:, 1, 1], wanted, atol=4 * 0.5 / np.sqrt(n))
    inside = np.abs(truth - np.asarray(answer.probabilities)[cell, 1])
    assert (inside <= np.asarray(answer.radius(0.2))[cell, 1] + 0.02).mean() >= 0.8

    def score(q):
        return np.log(np.where(two, q, 1 - q))

    gain, error = cheating(score(alone[cell]), score(after[cell, one.astype(int)]))
    assert gain > 4 * error
    knows, error = cheating(score(truth), score(truth))
    assert knows == error == 0


CHAIN = LocalChain(
    jnp.array([0.3, 0.7]),
    jnp.array([[[0.9, 0.1], [0.2, 0.8]], [[0.7, 0.3], [0.1, 0.9]], [[0.95, 0.05], [0.3, 0.7]]]),
)


def test_the_reasoning_gap():
    """Against the joint law, enumerated."""
    joint = np.einsum("a,ab,bc,cd->abcd", CHAIN.initial, *CHAIN.tables)
    exact = joint.sum((1, 2)) / joint.sum((1, 2, 3))[:, None]
    np.testing.assert_allclose(CHAIN.conditional(0, 3), exact, atol=1e-5)
    marginal = joint.sum((0, 1, 2))
    np.testing.assert_allclose(CHAIN.direct(0, 3), np.stack([marginal, marginal]), atol=1e-5)
    gap = (np.asarray(CHAIN.initial)[:, None] * (marginal - exact) ** 2).sum() / 2
    assert abs(CHAIN.gap(0, 3) - gap) < 1e-6 and CHAIN.gap(0, 1) == 0
    with pytest.raises(ValueError, match="source < query"):
        CHAIN.conditional(2, 1)
    draws = jax.vmap(CHAIN.sample)(jax.random.split(KEY, 4000))
    p = joint[:, :, 1, :].sum()
    assert abs((draws[:, 2] == 1).mean() - p) < 4 * np.sqrt(p * (1 - p) / 4000)


@pytest.mark.slow
def test_a_network_reasons_through_what_it_has_seen_together():
    start = conditionals(KEY, CHAIN, 32)
    loss = LocalLoss(CHAIN, 256)
    net = train(KEY, start, loss, 1500, learning_rate=1e-2, every=500, progress=False).params
    exact = CHAIN.conditional(0, 3)
    direct = float(jnp.mean((estimate(net, CHAIN, 0, 3) - exact) ** 2))
    stepwise = float(jnp.mean((scaffolded(net, CHAIN, 0, 3) - exact) ** 2))
    assert stepwise < 1e-3 and direct > 3 * stepwise
