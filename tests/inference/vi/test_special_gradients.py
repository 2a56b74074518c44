"""Learned baselines, straight-through draws, and gradients without variance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.unbiased import leaves_close, worst_z

from feynkac import ppl
from feynkac.inference import vi
from feynkac.ppl import dist

LOGITS = jnp.array([0.3, -0.8])


@ppl.program
def tosses(ctx, logits):
    ctx.sample("x", dist.Bernoulli(logits=logits))


@vi.objective
def linear(ctx, params):
    x, _ = ctx.draw("guide", tosses, params["logits"])
    return jnp.sum(x["x"].astype(float) * jnp.array([2.0, -1.0])) + 3.0


def exact(params):
    return jnp.sum(jax.nn.sigmoid(params["logits"]) * jnp.array([2.0, -1.0])) + 3.0


@pytest.mark.slow
def test_straight_through_is_right_where_all_is_linear():
    """And there it has no variance; the Gumbel form has some, and is near."""
    params = {"logits": LOGITS}
    truth = jax.grad(exact)(params)
    keys = jax.random.split(jax.random.key(0), 2000)

    def gradients(strategy):
        estimator = vi.value_and_grad(linear, strategy, allow_biased=True)
        return jax.jit(jax.vmap(lambda k: estimator(k, params)))(keys)

    values, grads = gradients(vi.StraightThrough())
    assert leaves_close(jax.tree.map(lambda g: g[0], grads), truth, 1e-6)
    assert abs(float(values.mean() - exact(params))) < 4 * float(values.std()) / 2000**0.5
    _, grads = gradients(vi.GumbelStraightThrough(0.5))
    assert float(grads["logits"].std(0).min()) > 0
    assert leaves_close(jax.tree.map(lambda g: g.mean(0), grads), truth, 0.15)


def test_a_learned_baseline():
    """Unbiased for the rest; its own gradient is that of the squared error."""
    params = {"logits": LOGITS, "level": jnp.array(1.5)}
    baseline = vi.Learned(lambda params: params["level"])
    estimator = vi.value_and_grad(linear, vi.Score(baseline))
    value, gradient = exact(params), jax.grad(exact)(params)
    truth = value, {"logits": gradient["logits"], "level": value - params["level"]}
    assert worst_z(estimator, jax.random.key(1), 20_000, truth, params) < 4


def test_enumeration_of_the_only_site_has_no_variance():
    @ppl.program
    def colour(ctx, logits):
        ctx.sample("c", dist.Categorical(logits=logits))

    @ppl.program
    def model(ctx):
        c = ctx.sample("c", dist.Categorical(jnp.array([0.2, 0.5, 0.3])))
        ctx.factor("y", 0.4 * c.astype(float) ** 2)

    def elbo(guide):
        log_q = jax.nn.log_softmax(guide.bound[0])
        log_p = jnp.log(jnp.array([0.2, 0.5, 0.3])) + 0.4 * jnp.arange(3.0) ** 2
        return jnp.sum(jnp.exp(log_q) * (log_p - log_q))

    guide = ppl.bind(colour, jnp.array([0.3, -0.2, 0.5]))
    estimator = vi.value_and_grad(vi.path_elbo, vi.Enumerate())
    keys = jax.random.split(jax.random.key(2), 16)
    _, grads = jax.vmap(lambda k: estimator(k, guide, ppl.Target(model)))(keys)
    truth = np.asarray(jax.grad(elbo)(guide).bound[0])
    assert np.allclose(np.asarray(grads.bound[0]), truth[None], atol=1e-5)
