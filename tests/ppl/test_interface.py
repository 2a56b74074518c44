"""The laws of the interface, for a program of every combinator; jit = no jit; vmap = loop."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac import ppl
from feynkac.ppl import dist, laws

KEY = jax.random.key(7)
HOLE = jnp.log(jnp.array([0.5, 0.0, 0.5]))  # token 1 has probability zero


@ppl.program
def coin(ctx, p):
    x = ctx.sample("x", dist.Bernoulli(probs=p)).astype(float)
    ctx.factor("like", 0.7 * x)
    return x


@ppl.program
def token(ctx, p):
    x = ctx.sample("y", ppl.Token(HOLE + jnp.array([0.0, 1.0, 0.4]) * p)).astype(float)
    ctx.observe("seen", dist.Bernoulli(probs=0.2 + 0.3 * x), 1)
    return x


@ppl.program
def call_twice(ctx, p):
    a = ctx.call("left", coin, p)
    b = ctx.call("right", token, 0.3 + 0.4 * a)
    return a + b


@ppl.program
def branching(ctx, p):
    a = ctx.sample("a", dist.Bernoulli(probs=p)) == 1
    b = ctx.call("b", ppl.cond(coin, token), a, p)
    return b + ctx.call("c", ppl.mask(token), ~a, p)


@ppl.program
def mixing(ctx, p):
    a = ctx.sample("a", dist.Bernoulli(probs=p)).astype(float)
    logits = jnp.stack([a, jnp.zeros_like(a), -jnp.inf * jnp.ones_like(a)])
    return ctx.call("m", ppl.mix(coin, token, coin), logits, p)


@ppl.program
def walk_step(ctx, carry, x):
    carry = ctx.sample("z", dist.Bernoulli(probs=0.2 + 0.5 * carry * x)).astype(float)
    ctx.observe("o", dist.Normal(carry, 1.0), x)
    return carry, 2.0 * carry


@ppl.program
def gated_step(ctx, carry, x):
    on = ctx.sample("on", dist.Bernoulli(probs=x)) == 1
    y = ctx.call("coin", ppl.mask(coin), on, 0.3 + 0.2 * carry)
    return y, None


@ppl.program
def scan_in_vmap(ctx, xs):
    return ctx.call("rows", ppl.vmap(ppl.scan(walk_step), in_axes=(None, 0)), jnp.zeros(()), xs)


def init(ctx, p):
    return ctx.sample("first", dist.Bernoulli(probs=p))


def step(ctx, state, t, p):
    logits = jnp.stack([HOLE, jnp.array([0.3, 0.2, -1.0])])[jnp.minimum(state, 1)]
    state = ctx.sample("next", ppl.Token(logits))
    ctx.factor("like", 0.3 * state.astype(float))
    return state


def ended(state):
    return state == 2


P = jnp.array(0.35)
XS = jnp.array([0.6, 0.3, 0.8])
ROWS = XS[None] * jnp.array([[1.0], [0.5]])
ZERO = jnp.zeros(())
CASES = {
    "call": (call_twice, (P,), ppl.select("left")),
    "cond and mask in vmap": (ppl.vmap(branching), (XS[:2],), ppl.select("a")[1:]),
    "mix": (mixing, (P,), ppl.select("a", ("m", "component"))),
    "mask in scan": (ppl.scan(gated_step), (ZERO, XS), ppl.select("on")[1]),
    "scan in vmap": (scan_in_vmap, (ROWS,), ~ppl.select()),
    "state space": (ppl.StateSpace(init, step, 3), (P,), ppl.select("next")[1:]),
    "done": (ppl.StateSpace(init, step, 2, ended, ppl.Reject()), (P,), ppl.select("next")[1:]),
}


QUICK = {"done"}


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES],
)
def test_laws(name):
    program, args, selection = CASES[name]
    laws.interface(KEY, program, *args, selection=selection).check()


PLAIN = ppl.Request()


class Lossy(ppl.GenerativeFunction):
    """Loses 2% of its weight where its first site is given."""

    inner: ppl.GenerativeFunction

    def run(self, key, given, args, request=PLAIN):
        out = self.inner.run(key, given, args, request)
        lost = jnp.log(0.98) if given else 0.0
        return eqx.tree_at(lambda o: o.log_weight, out, out.log_weight + lost)


def test_a_weight_that_depends_on_what_is_given_is_found():
    result = laws.interface(KEY, Lossy(coin), P, enumerable=False)
    assert not result.ok
    assert not result.z["generate with every choice given: choices"]
    with pytest.raises(laws.LawError, match="simulate: assess"):
        result.check()


@pytest.mark.slow
def test_jit_and_vmap_change_nothing():
    program, args, _ = CASES["cond and mask in vmap"]
    rows = (jnp.stack([args[0], 1 - args[0]]),)
    keys = jax.random.split(KEY, 2)

    def run(key, row):
        trace = program.simulate(key, row)
        return trace, program.assess(trace.choices, row)

    mapped = jax.jit(jax.vmap(run))(keys, *rows)
    for i in range(2):
        eager = run(keys[i], rows[0][i])
        same = jax.tree.map(lambda x, y, i=i: np.allclose(x[i], y, atol=1e-5), mapped, eager)
        assert all(jax.tree.leaves(same))
