"""Guides with auxiliary variables, in closed form and against a hand-written estimator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.unbiased import worst_z

from feynkac import ppl
from feynkac.inference import vi
from feynkac.ppl import dist

PARAMS = {"u": jnp.array(0.3), "slope": jnp.array(0.8), "scale": jnp.array(0.6)}


@ppl.program
def joint(ctx, p):
    u = ctx.sample("u", dist.Normal(p["u"], 1.0))
    ctx.sample("x", dist.Normal(p["slope"] * u, p["scale"]))


@ppl.program
def model(ctx):
    x = ctx.sample("x", dist.Normal(0.0, 1.5))
    ctx.observe("y", dist.Normal(x, 0.5), 0.9)


def guide():
    return ppl.bind(joint, PARAMS)


def _moments(p):
    mean, variance = p["slope"] * p["u"], p["slope"] ** 2 + p["scale"] ** 2
    log_p = -0.5 * (mean**2 + variance) / 1.5**2 - 0.5 * jnp.log(2 * jnp.pi * 1.5**2)
    log_y = -0.5 * ((0.9 - mean) ** 2 + variance) / 0.25 - 0.5 * jnp.log(2 * jnp.pi * 0.25)
    return log_p + log_y, variance


def _entropy(variance):
    return 0.5 * jnp.log(2 * jnp.pi * jnp.e * variance)


def _bound(variance_of_q):
    def exact(guide):
        p = guide.bound[0]
        energy, marginal = _moments(p)
        return energy + _entropy(variance_of_q(p, marginal))

    return exact


def test_hvi_against_the_closed_form():
    """The retained draw's density stands for the marginal's: the entropy is the conditional one."""
    exact = _bound(lambda p, marginal: p["scale"] ** 2)
    truth = jax.value_and_grad(exact)(guide())
    estimator = vi.value_and_grad(vi.hvi)
    assert worst_z(estimator, jax.random.key(4), 20_000, truth, guide(), ppl.Target(model)) < 4


@ppl.program
def components(ctx, p):
    u = ctx.sample("u", dist.Categorical(logits=p["logits"]))
    ctx.sample("x", dist.Normal(p["means"][u], p["scale"]))


def test_discrete_sites_that_are_integrated_out():
    """IWHVI, m = 2, of a mixture: both draws of its component have a strategy."""
    p = {
        "logits": jnp.array([0.5, -0.3, 0.1]),
        "means": jnp.array([-1.0, 0.4, 1.5]),
        "scale": jnp.array(0.7),
    }
    nodes, weights = map(jnp.asarray, np.polynomial.hermite_e.hermegauss(60))
    nodes, weights = nodes.astype(float), (weights / weights.sum()).astype(float)

    def bound(guide):
        p = guide.bound[0]
        x = p["means"][:, None] + p["scale"] * nodes[None]  # [own, node]
        log_p = jax.scipy.stats.norm.logpdf(x, 0.0, 1.5) + jax.scipy.stats.norm.logpdf(0.9, x, 0.5)
        log_q = jax.scipy.stats.norm.logpdf(x[None], p["means"][:, None, None], p["scale"])
        own = jnp.einsum("kkn->kn", log_q)[None]  # of the component that was drawn
        log_q = jnp.logaddexp(jnp.broadcast_to(own, log_q.shape), log_q) - jnp.log(2.0)
        share = jax.nn.softmax(p["logits"])
        return jnp.einsum("o,k,n,okn->", share, share, weights, log_p[None] - log_q)

    guide = ppl.bind(components, p)
    truth = jax.value_and_grad(bound)(guide)
    strategies = {
        "guide": {"u": vi.Enumerate()},
        "guide, integrated": {"guide": {"u": vi.Score(vi.Running().after(-2.0))}},
    }
    estimator = vi.value_and_grad(vi.iwhvi(2), strategies)
    assert worst_z(estimator, jax.random.key(7), 20_000, truth, guide, ppl.Target(model)) < 4


def _by_hand(key, p, m):
    """One draw of the IWHVI objective."""
    key_u, key_x, key_more = jax.random.split(key, 3)
    u = p["u"] + jax.random.normal(key_u)
    x = p["slope"] * u + p["scale"] * jax.random.normal(key_x)
    us = jnp.append(p["u"] + jax.random.normal(key_more, (m - 1,)), u)
    log_q = jax.scipy.stats.norm.logpdf(x, p["slope"] * us, p["scale"])
    log_q = jax.nn.logsumexp(log_q) - jnp.log(float(m))
    log_p = jax.scipy.stats.norm.logpdf(x, 0.0, 1.5) + jax.scipy.stats.norm.logpdf(0.9, x, 0.5)
    return log_p - log_q


@pytest.mark.slow
def test_iwhvi_against_hand_written_jax():
    n, keys = 20_000, jax.random.split(jax.random.key(5), 20_000)
    hand = jax.vmap(jax.value_and_grad(lambda p, key: _by_hand(key, p, 4)), (None, 0))
    value, grads = jax.jit(hand)(PARAMS, keys)
    ours = vi.value_and_grad(vi.iwhvi(4))
    draws = jax.jit(jax.vmap(lambda k: ours(k, guide(), ppl.Target(model))))(keys)
    pairs = zip(jax.tree.leaves((value, grads)), jax.tree.leaves(draws), strict=True)
    for a, b in pairs:
        a, b = np.asarray(a), np.asarray(b)
        error = np.sqrt((a.var() + b.var()) / n)
        assert abs(a.mean() - b.mean()) < 4 * error


@pytest.mark.slow
def test_the_bounds_are_in_order_below_the_evidence():
    target, keys = ppl.Target(model), jax.random.split(jax.random.key(6), 20_000)
    objectives = [vi.hvi, vi.iwhvi(4), vi.iwhvi(64), vi.diwhvi(8, 16)]

    def mean(objective):
        surrogate = vi.surrogate(objective)
        values = np.asarray(jax.jit(jax.vmap(lambda k: surrogate(k, guide(), target)))(keys))
        return float(values.mean()), float(values.std() / len(keys) ** 0.5)

    values, errors = zip(*(mean(objective) for objective in objectives), strict=True)
    evidence = float(dist.Normal(0.0, (1.5**2 + 0.25) ** 0.5).log_prob(0.9))
    assert list(values) == sorted(values) and values[-1] < evidence
    # Of 64 inner draws a gap of about half their relative variance over 64 is left.
    elbo = float(_bound(lambda p, marginal: marginal)(guide()))
    assert -0.03 - 4 * errors[2] < values[2] - elbo < 4 * errors[2]
