"""Each law holds for what is right and rejects a planted bias of 2%."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac import inference, ppl
from feynkac.ppl import dist, laws

KEY = jax.random.key(2024)
MOVE = np.array([[0.6, 0.4], [0.3, 0.7]])
EMIT = np.array([[0.8, 0.2], [0.35, 0.65]])
SEEN = np.array([1, 0, 1])


def init(ctx, seen):
    return ctx.sample("first", dist.Bernoulli(probs=0.45))


def step(ctx, state, t, seen):
    state = ctx.sample("next", dist.Categorical(probs=jnp.asarray(MOVE, float)[state]))
    ctx.observe("seen", dist.Categorical(probs=jnp.asarray(EMIT, float)[state]), seen[t])
    return state


CHAIN = ppl.Target(ppl.StateSpace(init, step, 3), (jnp.asarray(SEEN),))
SMALL = ppl.Target(ppl.StateSpace(init, step, 1), (jnp.asarray(SEEN[:1]),))
SMC = inference.SMC(16)


class Biased(eqx.Module):
    """An algorithm with weights, or densities, off by a factor where some event holds."""

    inner: ppl.Algorithm
    factor: float = 1.02

    def event(self, choices):
        return choices["first"] == 1

    def run(self, key, target):
        p = self.inner.run(key, target)
        log_w = p.log_weights + jnp.where(self.event(p.choices), jnp.log(self.factor), 0.0)
        log_z = jax.nn.logsumexp(log_w) - jnp.log(float(len(log_w)))
        return eqx.tree_at(lambda p: (p.log_weights, p.log_evidence), p, (log_w, log_z))

    def random_weighted(self, key, target):
        choices, log_w = self.inner.random_weighted(key, target)
        return choices, log_w + jnp.where(self.event(choices), jnp.log(self.factor), 0.0)

    def estimate_logpdf(self, key, target, choices):
        return self.inner.estimate_logpdf(key, target, choices)


def rejects(result, least=4.0):
    """It is broken, at the first look and at the second."""
    assert not result.ok and result.first is not None
    assert min(max(map(abs, result.first.values())), result.max_abs_z / 2) > least, result
    with pytest.raises(laws.LawError, match="BROKEN"):
        result.check()


def test_proper_weighting():
    laws.proper_weighting(KEY, SMC, CHAIN).check()
    rejects(laws.proper_weighting(KEY, Biased(SMC), CHAIN))


def test_unbiased_evidence():
    laws.unbiased_evidence(KEY, SMC, CHAIN).check()
    exact = inference.exact.enumerate(CHAIN).log_evidence
    rejects(laws.unbiased_evidence(KEY, SMC, CHAIN, exact + np.log(1.02)))


@pytest.mark.slow
def test_nested_density():
    few = inference.SMC(3)
    result = laws.nested_density(KEY, few, SMALL).check()
    assert "sum of E[1/w]" in result.z
    rejects(laws.nested_density(KEY, Biased(few), SMALL))


class Metropolis(eqx.Module):
    """Flip one of two states; moves of the first to 1 are accepted `factor` too often."""

    target: ppl.Target
    factor: float

    def __call__(self, key, choices):
        key_site, key_accept = jax.random.split(key)
        site = jax.random.randint(key_site, (), 0, 2)
        first = jnp.where(site == 0, 1 - choices["first"], choices["first"])
        nexts = jnp.where(jnp.arange(1, 4) == site, 1 - choices["next"], choices["next"])
        new = {"first": first, "next": nexts}
        log_r = self.target.log_density(new) - self.target.log_density(choices)
        wrong = jnp.where((site == 0) & (first == 1), self.factor, 1.0)
        accept = jax.random.uniform(key_accept) < wrong * jnp.minimum(jnp.exp(log_r), 1.0)
        return jax.tree.map(lambda a, b: jnp.where(accept, a, b), new, choices)


@pytest.mark.slow
def test_invariance():
    laws.invariance(KEY, Metropolis(CHAIN, 1.0), CHAIN).check()
    laws.invariance(KEY, inference.MH(ppl.select("next")), CHAIN).check()
    rejects(laws.invariance(KEY, Metropolis(CHAIN, 0.98), CHAIN, runs=2**19))


def test_generate():
    @ppl.program
    def honest(ctx, p):
        ctx.factor("f", 0.3 * ctx.sample("a", dist.Bernoulli(probs=p)).astype(float))
        ctx.sample("b", dist.Bernoulli(probs=0.3))

    laws.generate(KEY, honest, jnp.array(0.4), constraints={"b": 1}).check()
    result = laws.generate(KEY, Forgetful(honest), jnp.array(0.4), constraints={"b": 1})
    rejects(result)


PLAIN = ppl.Request()


class Forgetful(ppl.GenerativeFunction):
    """A program whose weight is 2% off when some sites are drawn."""

    inner: ppl.GenerativeFunction

    def run(self, key, given, args, request=PLAIN):
        out = self.inner.run(key, given, args, request)
        wrong = jnp.zeros(()) if request.complete else jnp.log(jnp.asarray(1.02))
        return eqx.tree_at(lambda o: o.log_weight, out, out.log_weight + wrong)


def guess(p):
    def propose(ctx, state, t, seen):
        table = p * jnp.asarray(MOVE, float) + (1 - p) * 0.5
        ctx.sample("next", dist.Categorical(probs=table[state]))

    return ppl.Proposal(propose)


def test_identity_proposal():
    laws.identity_proposal(KEY, CHAIN, guess(1.0)).check()
    rejects(laws.identity_proposal(KEY, CHAIN, guess(0.98)))
