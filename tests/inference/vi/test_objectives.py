"""Wake phases, divergences and the variational SMC bound, by enumeration."""

import itertools

import jax
import jax.numpy as jnp
import pytest
from oracles.unbiased import worst_z

from feynkac import inference, ppl
from feynkac.inference import vi
from feynkac.ppl import dist

TARGET = jnp.array([-0.7, 0.6, 0.2])


@ppl.program
def categories(ctx, logits):
    ctx.sample("x", dist.Categorical(logits=logits))


@ppl.program
def model(ctx, scores):
    x = ctx.sample("x", dist.Categorical(logits=jnp.zeros(3)))
    ctx.factor("y", scores[x])


def guide(logits=(0.3, -0.2, 0.5)):
    return ppl.bind(categories, jnp.array(logits))


def _tables(guide, scores):
    return jax.nn.log_softmax(guide.bound[0]), scores - jnp.log(3.0)


def _weighted(guide, scores, f):
    """E of the self-normalized mean of f over 2 draws, which are taken as given."""
    log_q, log_p = jax.lax.stop_gradient(_tables(guide, scores))
    total = jnp.zeros(())
    for a, b in itertools.product(range(3), repeat=2):
        x = jnp.array([a, b])
        weights = jax.nn.softmax((log_p - log_q)[x])
        total += jnp.exp(jnp.sum(log_q[x])) * jnp.sum(weights * f[x])
    return total


def _q_wake(guide, scores):
    return _weighted(guide, scores, _tables(guide, scores)[0])


def _p_wake(scores, guide):
    return _weighted(guide, scores, _tables(guide, scores)[1])


def _symmetric(guide, scores):
    log_q, log_p = _tables(guide, scores)
    return jnp.sum(jnp.exp(log_q) * (log_p - log_q)) + _weighted(guide, scores, log_q - log_p)


def _renyi(guide, scores):
    log_q, log_p = _tables(guide, scores)
    total = jnp.zeros(())
    for a, b in itertools.product(range(3), repeat=2):
        x = jnp.array([a, b])
        value = (jax.nn.logsumexp(0.5 * (log_p - log_q)[x]) - jnp.log(2.0)) / 0.5
        total += jnp.exp(jnp.sum(log_q[x])) * value
    return total


def _forward(guide, posterior):
    log_p = jax.nn.log_softmax(posterior.bound[0])
    return jnp.sum(jnp.exp(log_p) * (jax.nn.log_softmax(guide.bound[0]) - log_p))


@vi.objective
def together(ctx, guide, scores):
    """Sums of independent parts: one compilation for all, and calls inside an objective."""
    target = ppl.Target(ppl.bind(model, scores))
    wake = ctx.call("wake", vi.q_wake(2), guide, target)
    symmetric = ctx.call("symmetric", vi.symmetric(2), guide, target)
    renyi = ctx.call("renyi", vi.renyi(0.5, 2), guide, target)
    forward = ctx.call("forward", vi.forward_kl, guide, ppl.bind(categories, TARGET))
    return wake + 2 * symmetric + renyi + 3 * forward


@pytest.mark.slow
def test_objectives_by_enumeration():
    def exact(guide, scores):
        parts = _q_wake(guide, scores), 2 * _symmetric(guide, scores), _renyi(guide, scores)
        return sum(parts) + 3 * _forward(guide, ppl.bind(categories, TARGET))

    truth = jax.value_and_grad(exact)(guide(), TARGET)
    estimator = vi.value_and_grad(together, vi.Enumerate())
    assert worst_z(estimator, jax.random.key(7), 20_000, truth, guide(), TARGET) < 4


@pytest.mark.slow
def test_the_models_wake_phase():
    target = ppl.Target(ppl.bind(model, TARGET))
    estimator = vi.value_and_grad(vi.p_wake(2))
    value, grads = jax.value_and_grad(_p_wake)(TARGET, guide())
    truth = (value, jax.tree.map(lambda _: grads, target))
    assert worst_z(estimator, jax.random.key(8), 20_000, truth, target, guide()) < 4


def _state_space(params):
    def init(ctx, p):
        z = ctx.sample("z0", dist.Normal(0.0, 1.0))
        sign = jnp.sign(z)
        ctx.factor("first", p["first"] * sign)
        return sign

    def step(ctx, sign, t, p):
        z = ctx.sample("z", dist.Normal(0.0, 1.0))
        ctx.factor("second", p["second"] * sign * (jnp.sign(z) + 1.5))
        return jnp.sign(z)

    return ppl.bind(ppl.StateSpace(init, step, 1), params)


@vi.objective
def filtered(ctx, params):
    return vi.vsmc(2)(ctx, ppl.Proposal(), ppl.Target(_state_space(params)))


@vi.objective
def filtered_without_scores(ctx, params):
    return vi.biased_vsmc(2)(ctx, ppl.Proposal(), ppl.Target(_state_space(params)))


def _vsmc(p):
    """Over the signs of two particles before and after, and whom each descends from."""
    total = jnp.zeros(())
    for signs in itertools.product((-1.0, 1.0), repeat=4):
        before, after = jnp.array(signs[:2]), jnp.array(signs[2:])
        log_w = p["first"] * before
        first = jax.nn.logsumexp(log_w) - jnp.log(2.0)
        for ancestors in itertools.product((0, 1), repeat=2):
            a = jnp.array(ancestors)
            chance = jnp.exp(jnp.sum(jax.nn.log_softmax(log_w)[a]))
            second = jax.nn.logsumexp(p["second"] * before[a] * (after + 1.5)) - jnp.log(2.0)
            total += chance / 16 * (first + second)
    return total


@pytest.mark.slow
def test_variational_smc():
    """With the choices of ancestors the gradient is that of enumeration, without it is not."""
    params = {"first": jnp.array(0.8), "second": jnp.array(1.1)}
    truth = jax.value_and_grad(_vsmc)(params)
    running = vi.Running().after(truth[0])
    unbiased = vi.value_and_grad(filtered, baseline=running)
    assert worst_z(unbiased, jax.random.key(9), 20_000, truth, params) < 4
    biased = vi.value_and_grad(filtered_without_scores)
    assert worst_z(biased, jax.random.key(9), 20_000, truth, params) > 6


@pytest.mark.slow
def test_the_pick_of_normalize_has_a_score():
    """A guide that picks one of two draws by weight, its proposal's odds learned."""

    @ppl.program
    def shifted(ctx, p):
        x = ctx.sample("x", dist.Normal(0.0, 1.0))
        ctx.factor("w", p * jnp.sign(x))

    @vi.objective
    def objective(ctx, p):
        target = ppl.Target(ppl.bind(shifted, p))
        x, _ = ctx.draw("guide", ppl.normalize(target, inference.Importance(2)))
        return (x["x"] > 0).astype(float) * 2

    def exact(p):
        # One of two is picked: positive if both are, and by its weight if one is.
        return 2 * (0.25 + 0.5 * jax.nn.sigmoid(2 * p))

    p = jnp.array(0.4)
    truth = jax.value_and_grad(exact)(p)
    assert worst_z(vi.value_and_grad(objective), jax.random.key(10), 20_000, truth, p) < 4
