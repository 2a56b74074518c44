"""Sequence networks are causal and step as they scan; exact predictors are exact."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats
from scipy.special import betaln

from feynkac.models.amortized import network, train
from feynkac.models.amortized.causal import CausalTransformer
from feynkac.models.amortized.icl import (
    Bernoulli,
    Gaussian,
    InContext,
    Loss,
    compare,
    strategy,
    tokens,
)
from feynkac.models.amortized.icl_tasks import Task, pool
from feynkac.models.amortized.priors import Bandit, LinearRegression
from feynkac.models.amortized.state_space import Diagonal, Selective, StateSpaceNet

KEY = jax.random.key(0)


def shaken(module, key=KEY):
    """With random parameters everywhere: new networks answer zero."""
    graph, state = nnx.split(module)
    leaves, structure = jax.tree.flatten(state)
    keys = jax.random.split(key, len(leaves))
    noise = [x + 0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return nnx.merge(graph, jax.tree.unflatten(structure, noise))


@pytest.mark.parametrize("layer", [Diagonal, Selective])
def test_scan_is_step_by_step_and_resets(layer):
    net = shaken(StateSpaceNet(3, 2, 8, 2, 4, layer, rngs=nnx.Rngs(0)))
    u = jax.random.normal(KEY, (9, 3))
    reset = jnp.zeros(9, bool).at[5].set(True)
    # One program: whole, reset inside, the part after the reset alone, an altered end.
    whole, packed, alone, altered = jax.jit(
        lambda u: (net(u), net(u, reset), net(u[5:]), net(u.at[6:].add(1.0)))
    )(u)
    assert float(jnp.std(whole)) > 1e-3
    np.testing.assert_allclose(packed[:5], whole[:5], atol=1e-5)
    np.testing.assert_allclose(packed[5:], alone, atol=1e-5)
    np.testing.assert_allclose(altered[:6], whole[:6], atol=1e-5)
    assert float(jnp.max(jnp.abs(altered[6:] - whole[6:]))) > 1e-3
    _, stepped = jax.jit(lambda u: jax.lax.scan(net.step, net.start(), u))(u)
    np.testing.assert_allclose(stepped, whole, atol=1e-5)


def test_the_transformer_is_causal():
    net = shaken(CausalTransformer(3, 2, 9, 8, 2, 2, rngs=nnx.Rngs(0)))
    u = jax.random.normal(KEY, (2, 9, 3))
    whole, altered, first = jax.jit(lambda u: (net(u), net(u.at[:, 6:].add(1.0)), net(u[0])))(u)
    np.testing.assert_allclose(altered[:, :6], whole[:, :6], atol=1e-5)
    assert float(jnp.max(jnp.abs(altered[:, 6:] - whole[:, 6:]))) > 1e-3
    np.testing.assert_allclose(first, whole[0], atol=1e-5)
    with pytest.raises(ValueError, match="positions were made for 9"):
        net(jnp.zeros((10, 3)))


def regression(inputs, length):
    return Task(LinearRegression(inputs), length)


def test_exact_predictors():
    """Chained predictives are the evidence; ridge regression is the normal equations'."""
    task, few = regression(2, 6), pool(KEY, 3, 2)

    @jax.jit
    def run(key):
        x, y = task.sample(key)
        memory = Task(few, 6).log_prob(x, y)
        return x, y, task.log_prob(x, y), task.mean(x, y), memory

    x, y, log_prob, mean, memory = map(np.asarray, run(KEY))
    covariance = x @ x.T + 0.25 * np.eye(6)
    wanted = stats.multivariate_normal(np.zeros(6), covariance).logpdf(y)
    assert abs(log_prob.sum() - wanted) < 1e-3
    ridge = np.linalg.solve(x[:5].T @ x[:5] + 0.25 * np.eye(2), x[:5].T @ y[:5])
    assert abs(mean[5] - x[5] @ ridge) < 1e-4
    each = stats.norm.logpdf(y[:, None], x @ np.asarray(few.pool).T, 0.5).sum(0)
    evidence = np.log(np.mean(np.exp(each - each.max()))) + each.max()
    assert abs(memory.sum() - evidence) < 1e-3


def test_an_exact_predictor_of_coins():
    """A bandit's chained predictives are its Beta-binomial evidence."""
    task = Task(Bandit(3, 2.0, 1.0), 12)

    @jax.jit
    def run(key):
        x, y = task.sample(key)
        return x, y, task.log_prob(x, y)

    x, y, log_prob = map(np.asarray, run(KEY))
    evidence = 0.0
    for arm in x.T:
        wins, pulls = arm @ y, arm.sum()
        evidence += betaln(2.0 + wins, 1.0 + pulls - wins) - betaln(2.0, 1.0)
    assert abs(log_prob.sum() - evidence) < 1e-3


def test_the_pool_is_a_program():
    """Its density is that of the predictor's model."""
    few = pool(KEY, 3, 2)
    trace = few.program(4).simulate(KEY)
    x, y, task = (np.asarray(trace.choices[name]) for name in ("x", "y", "task"))
    wanted = stats.norm.logpdf(y, x @ np.asarray(few.pool)[task], 0.5).sum()
    wanted += stats.norm.logpdf(x).sum() - np.log(3)
    assert abs(float(trace.score) - wanted) < 1e-3


def test_predictions_do_not_see_their_response():
    x, y = jax.random.normal(KEY, (4, 2)), jnp.arange(1.0, 5.0)
    seen = tokens(x, y)
    assert seen.shape == (4, 6)
    np.testing.assert_array_equal(seen[1:, 2:4], x[:-1])
    np.testing.assert_array_equal(seen[1:, 4], y[:-1])
    np.testing.assert_array_equal(seen[:, 5], [1, 0, 0, 0])
    np.testing.assert_array_equal(tokens(x, y.at[3].add(1.0)), seen)


@pytest.mark.slow
def test_comparisons():
    """Of exact predictors with one another: none is better than a family's own."""
    few, any_task = Task(pool(KEY, 4, 2), 10), regression(2, 10)
    key = jax.random.key(5)
    own = compare(key, few, few, 500)
    assert abs(own.excess.mean) < 1e-5 and own.distance < 1e-4
    assert compare(key, any_task, few, 500).excess.low > 0
    wrong = compare(key, few, any_task, 500)
    assert wrong.excess.low > 0 and wrong.by_position[0] < wrong.by_position[-1]


def test_heads():
    for head in (Gaussian(), Bernoulli()):
        raw = jnp.linspace(-2.0, 2.0, 3 * head.width).reshape(3, head.width)
        y = jnp.array([0.0, 1.0, 1.0])
        if head.width == 1:
            wanted = stats.bernoulli.logpmf(y, 1 / (1 + np.exp(-raw[:, 0])))
        else:
            wanted = stats.norm.logpdf(y, raw[:, 0], np.exp(5 * np.tanh(raw[:, 1] / 5)))
        np.testing.assert_allclose(head.log_prob(raw, y), wanted, atol=1e-4)


class Between(eqx.Module):
    """A predictor that is 0.3 of the way from the generalizing to the memorizing one."""

    first: eqx.Module
    second: eqx.Module

    def mean(self, x, y):
        one, two = (task.mean(x, y) for task in (self.first, self.second))
        return 0.3 * one + 0.7 * two + 0.01


@pytest.mark.slow
def test_strategies_are_told_apart():
    few, any_task = Task(pool(KEY, 4, 2), 10), regression(2, 10)
    found = strategy(KEY, Between(few, any_task), few, any_task, any_task, 300)
    assert abs(found.share - 0.3) < 4 * found.error + 1e-3 and abs(found.left - 0.01) < 2e-3


@pytest.mark.slow
def test_a_network_learns_the_optimum():
    """A coin: after a minute or less, within 0.01 nats of the Beta-Bernoulli predictor."""
    task = Task(Bandit(1), 12)
    net = StateSpaceNet(4, 1, 16, 1, 4, rngs=nnx.Rngs(0))
    start = InContext(network(net), Bernoulli())
    before = compare(jax.random.key(3), start, task, 500).excess
    fit = train(KEY, start, Loss(task, 64), 1200, learning_rate=1e-2, every=400, progress=False)
    after = compare(jax.random.key(3), fit.params, task, 500)
    assert before.low > 0.05 and after.excess.mean < 0.01
    assert after.excess.high > 0
