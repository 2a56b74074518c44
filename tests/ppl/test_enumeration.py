"""Enumeration against sums written by hand in numpy."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac import ppl
from feynkac.inference import exact
from feynkac.ppl import dist

START = np.array([0.5, 0.3, 0.2])
MOVE = np.array([[0.6, 0.4, 0.0], [0.1, 0.5, 0.4], [0.3, 0.3, 0.4]])
EMIT = np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]])
SEEN = np.array([1, 0, 1])


def chain_init(ctx, seen):
    return ctx.sample("first", dist.Categorical(probs=jnp.asarray(START, float)))


def chain_step(ctx, state, t, seen):
    state = ctx.sample("next", dist.Categorical(probs=jnp.asarray(MOVE, float)[state]))
    ctx.observe("seen", dist.Categorical(probs=jnp.asarray(EMIT, float)[state]), seen[t])
    return state


def chain_sums(done=lambda s: False, reject=False):
    """gamma of every distinct (first, next[0..2]) as a dict; steps after `done` are zeros."""
    gamma = {}
    for first in range(3):
        for nexts in itertools.product(range(3), repeat=3):
            p, state, path = START[first], first, [first]
            for t, x in enumerate(nexts):
                if done(state):
                    path.append(0)
                    continue
                p, state = p * MOVE[state, x] * EMIT[x, SEEN[t]], x
                path.append(x)
            if reject and not done(state):
                p = 0.0
            gamma[tuple(path)] = p
    return {k: v for k, v in gamma.items() if v > 0}


def as_dict(post):
    first, nexts = np.asarray(post.choices["first"]), np.asarray(post.choices["next"])
    keys = [(int(f), *map(int, n)) for f, n in zip(first, nexts, strict=True)]
    assert len(set(keys)) == len(keys)
    return dict(zip(keys, np.exp(post.log_probs), strict=True))


@pytest.mark.parametrize("case", ["plain", "done", "reject"])
def test_state_space(case):
    done = None if case == "plain" else lambda s: s == 2
    at_length = ppl.Reject() if case == "reject" else ppl.Keep()
    model = ppl.StateSpace(chain_init, chain_step, 3, done, at_length)
    post = exact.enumerate(ppl.Target(model, (jnp.asarray(SEEN),)))
    sums = chain_sums(done or (lambda s: False), case == "reject")
    z = sum(sums.values())
    assert post.log_evidence == pytest.approx(math.log(z), abs=1e-6)
    found = as_dict(post)
    assert found.keys() == sums.keys()
    for key, p in sums.items():
        assert found[key] == pytest.approx(p / z, rel=1e-5)
    mean = post.expectation(lambda c: {"first": c["first"], "square": c["next"] ** 2})
    assert mean["first"] == pytest.approx(sum(k[0] * p for k, p in sums.items()) / z, rel=1e-5)
    square = sum(np.array(k[1:]) ** 2 * p for k, p in sums.items()) / z
    np.testing.assert_allclose(mean["square"], square, rtol=1e-5)
    log_probs = jax.jit(jax.vmap(post.log_prob))(post.choices)
    np.testing.assert_allclose(log_probs, post.log_probs, atol=1e-5)


def test_constraints_whole_and_partial():
    model = ppl.StateSpace(chain_init, chain_step, 3)
    mask = jnp.array([False, True, False])
    target = ppl.Target(
        model, (jnp.asarray(SEEN),), {"first": 1, "next": ppl.Partial(jnp.array([0, 2, 0]), mask)}
    )
    post = exact.enumerate(target)
    sums = {k: v for k, v in chain_sums().items() if k[0] == 1 and k[2] == 2}
    z = sum(sums.values())
    assert post.log_evidence == pytest.approx(math.log(z), abs=1e-6)
    assert as_dict(post) == pytest.approx({k: v / z for k, v in sums.items()}, rel=1e-5)
    _, probabilities = post.marginal("next")
    expected = np.zeros((3, 3))
    for key, p in sums.items():
        for t in range(3):
            expected[t, key[t + 1]] += p / z
    np.testing.assert_allclose(probabilities, expected, rtol=1e-5, atol=1e-12)
    against = {"first": jnp.array(0), "next": jnp.array([0, 2, 1])}
    assert post.log_prob(against) == -jnp.inf


@ppl.program
def coin(ctx, p):
    return ctx.sample("x", dist.Bernoulli(probs=p)).astype(float)


@ppl.program
def wide(ctx, p):
    return ctx.sample("y", ppl.Token(jnp.log(jnp.array([0.2, 0.0, 0.8])))).astype(float) * p


def test_branches_collapse():
    @ppl.program
    def model(ctx):
        a = ctx.sample("a", dist.Bernoulli(probs=0.3)) == 1
        b = ctx.call("b", ppl.cond(coin, wide), a, jnp.array(0.25))
        c = ctx.call("c", ppl.mix(coin, wide), jnp.log(jnp.array([0.4, 0.6])), jnp.array(0.5))
        d = ctx.call("d", ppl.mask(coin), ~a, jnp.array(0.9))
        ctx.factor("f", 0.1 * (b + c + d))
        return b + c + d

    post = exact.enumerate(model)
    z, count = 0.0, 0
    for a, pa in ((1, 0.3), (0, 0.7)):
        bs = [(0.0, 0.75), (1.0, 0.25)] if a else [(0.0, 0.2), (0.5, 0.8)]
        cs = [(0.0, 0.2), (1.0, 0.2), (0.0, 0.12), (1.0, 0.48)]
        ds = [(0.0, 1.0)] if a else [(0.0, 0.1), (1.0, 0.9)]
        for (b, pb), (c, pc), (d, pd) in itertools.product(bs, cs, ds):
            z += pa * pb * pc * pd * math.exp(0.1 * (b + c + d))
            count += 1
    assert post.log_evidence == pytest.approx(math.log(z), abs=1e-5)
    assert len(post.log_probs) == count
    assert float(np.exp(post.log_probs).sum()) == pytest.approx(1, abs=1e-9)
    happens = post.marginal("b", "true", "x")[1].sum()
    assert happens == pytest.approx(post.expectation(lambda c: c["a"]), rel=1e-9)


def test_vector_sites_and_instances():
    @ppl.program
    def pair(ctx, p):
        return ctx.sample("x", dist.Bernoulli(probs=jnp.stack([p, 1 - p])))

    model = ppl.vmap(pair)
    post = exact.enumerate(ppl.Target(model, (jnp.array([0.1, 0.2, 0.3]),)))
    assert len(post.log_probs) == 4**3
    np.testing.assert_allclose(
        post.expectation(lambda c: c["x"]), [[0.1, 0.9], [0.2, 0.8], [0.3, 0.7]], rtol=1e-5
    )
    assert post.log_evidence == pytest.approx(0, abs=1e-6)


def test_continuous_constrained():
    @ppl.program
    def model(ctx):
        k = ctx.sample("k", dist.Bernoulli(probs=0.25))
        ctx.sample("x", dist.Normal(k.astype(float), 1.0))

    with pytest.raises(ppl.ProgramError, match="'x'"):
        exact.enumerate(model)
    post = exact.enumerate(ppl.Target(model, (), {"x": 0.7}))
    odds = 0.25 * math.exp(-(0.3**2) / 2) / (0.75 * math.exp(-(0.7**2) / 2))
    assert post.expectation(lambda c: c["k"]) == pytest.approx(odds / (1 + odds), rel=1e-5)


def test_impossible():
    model = ppl.StateSpace(chain_init, chain_step, 3)
    post = exact.enumerate(
        ppl.Target(model, (jnp.asarray(SEEN),), {"first": 0, "next": jnp.array([2, 0, 0])})
    )
    assert post.log_evidence == -math.inf
    with pytest.raises(ValueError, match="evidence 0"):
        post.expectation(lambda c: c["first"])


def test_errors():
    model = ppl.StateSpace(chain_init, chain_step, 30)
    with pytest.raises(ValueError, match=r"next: 3\^30"):
        exact.enumerate(ppl.Target(model, (jnp.zeros(30, int),)))

    @ppl.program
    def moving(ctx):
        a = ctx.sample("a", dist.Bernoulli(probs=0.5))
        ctx.sample("b", Moving(a))

    with pytest.raises(ValueError, match="union"):
        exact.enumerate(moving)


class Moving(dist.Distribution):
    """Uniform on {a, a + 1}."""

    has_enumerate_support = True
    pytree_data_fields = ("a",)
    support = dist.constraints.nonnegative_integer

    def __init__(self, a):
        self.a = a
        super().__init__(batch_shape=())

    def sample(self, key, sample_shape=()):
        return self.a + jax.random.bernoulli(key, 0.5, sample_shape).astype(self.a.dtype)

    def log_prob(self, value):
        return jnp.where((value == self.a) | (value == self.a + 1), math.log(0.5), -jnp.inf)

    def enumerate_support(self, expand=True):
        return self.a + jnp.arange(2, dtype=self.a.dtype)
