"""Programs as pytrees, and each operation of the interface against numbers worked out by hand."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from feynkac import ppl

KEY = jax.random.key(0)


def logp(x, m=0.0, s=1.0):
    return -0.5 * ((x - m) / s) ** 2 - np.log(s) - 0.5 * np.log(2 * np.pi)


@ppl.program
def pair(ctx, m):
    a = ctx.sample("a", dist.Normal(m, 1.0))
    b = ctx.sample("b", dist.Normal(a, 2.0))
    ctx.observe("y", dist.Normal(b, 0.5), 1.0)
    ctx.factor("f", 0.25 * a)
    return a + b


def density(a, b, m):
    """Score and log_weight of `pair`."""
    return logp(a, m) + logp(b, a, 2.0), logp(1.0, b, 0.5) + 0.25 * a


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def trace_of(a, b, m):
    trace, _ = pair.generate(KEY, {"a": a, "b": b}, m)
    return trace


def test_simulate():
    trace = pair.simulate(KEY, 3.0)
    a, b = trace.choices["a"], trace.choices["b"]
    score, log_weight = density(a, b, 3.0)
    close((trace.score, trace.log_weight, trace.retval), (score, log_weight, a + b))
    close(trace.log_probs["b"], logp(b, a, 2.0))


def test_assess():
    log_p, retval = pair.assess({"a": 0.5, "b": -1.0}, 3.0)
    close((log_p, retval), (sum(density(0.5, -1.0, 3.0)), -0.5))


def test_generate():
    trace, log_w = pair.generate(KEY, {"b": -1.0}, 3.0)
    a = trace.choices["a"]
    close(log_w, logp(-1.0, a, 2.0) + density(a, -1.0, 3.0)[1])
    close(trace.score, density(a, -1.0, 3.0)[0])
    close(a, pair.simulate(KEY, 3.0).choices["a"])  # the same key, the same draw


def test_update_of_a_choice_and_of_the_args():
    old = trace_of(0.5, -1.0, 3.0)
    new, log_w, back = pair.update(KEY, old, {"a": 2.0}, 1.0)
    close(log_w, sum(density(2.0, -1.0, 1.0)) - sum(density(0.5, -1.0, 3.0)))
    close((new.choices["a"], new.choices["b"], new.retval), (2.0, -1.0, 1.0))
    again, log_w_back, _ = pair.update(KEY, new, back, 3.0)
    close(log_w_back, -log_w)
    close((again.choices["a"], again.score), (0.5, old.score))


def test_regenerate():
    old = trace_of(0.5, -1.0, 3.0)
    new, log_a = pair.regenerate(KEY, old, ppl.select("a"), 3.0)
    a = new.choices["a"]
    assert a != 0.5 and new.choices["b"] == -1.0
    # the draws of a cancel: left are the density of b given a, and the weights
    want = logp(-1.0, a, 2.0) + density(a, -1.0, 3.0)[1]
    close(log_a, want - logp(-1.0, 0.5, 2.0) - density(0.5, -1.0, 3.0)[1])


def test_project():
    trace = trace_of(0.5, -1.0, 3.0)
    close(pair.project(trace, ppl.select("b"), 3.0), logp(-1.0, 0.5, 2.0))
    close(pair.project(trace, ~ppl.select(), 3.0), trace.score)
    close(pair.project(trace, ppl.select(), 3.0), 0.0)


def test_draws_follow_the_site_name():
    def few(ctx):
        return ctx.sample("x", dist.Normal(0.0, 1.0)), ctx.call("c", inner)

    def more(ctx):
        ctx.sample("before", dist.Normal(0.0, 1.0))
        return few(ctx)

    inner = ppl.program(lambda ctx: ctx.sample("x", dist.Normal(0.0, 1.0)))
    x, in_call = ppl.program(few).simulate(KEY).retval
    assert ppl.program(more).simulate(KEY).retval == (x, in_call)
    assert x != in_call


def test_calls_nest_and_programs_called_directly_do_not():
    @ppl.program
    def outer(ctx, m):
        first = ctx.call("one", pair, m)
        second = ctx.call("two", middle, first)
        return second + inline(ctx, m)

    middle = ppl.program(lambda ctx, m: ctx.call("three", pair, m))
    inline = ppl.program(lambda ctx, m: ctx.sample("here", dist.Normal(m, 1.0)))
    choices = {
        "one": {"a": 0.1, "b": 0.2},
        "two": {"three": {"a": 0.3, "b": 0.4}},
        "here": 0.5,
    }
    log_p, retval = outer.assess(choices, 3.0)
    close(log_p, sum(density(0.1, 0.2, 3.0) + density(0.3, 0.4, 0.3)) + logp(0.5, 3.0))
    close(retval, 0.7 + 0.5)
    trace, _ = outer.generate(KEY, {"two": {"three": {"a": 0.3}}}, 3.0)
    assert jax.tree.structure(trace.choices) == jax.tree.structure(choices)
    part = outer.project(trace, ppl.select(("two", "three", "a")), 3.0)
    close(part, logp(0.3, trace.choices["one"]["a"] + trace.choices["one"]["b"]))


def scaled(ctx, table, offset, x):
    return ctx.sample("z", dist.Normal(table @ x + offset, 1.0).to_event(1))


def test_bound_arrays_are_leaves_and_fix_the_leading_args():
    table, x = jnp.arange(6.0).reshape(2, 3), jnp.ones(3)
    program = ppl.bind(ppl.bind(scaled, table), 1)
    assert [leaf.shape for leaf in jax.tree.leaves(program)] == [(2, 3), ()]
    whole = ppl.program(scaled).simulate(KEY, table, 1.0, x)
    close(program.simulate(KEY, x).retval, whole.retval)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, program)
    close(doubled.simulate(KEY, x).retval, ppl.bind(scaled, 2 * table, 2).simulate(KEY, x).retval)
    gradient = eqx.filter_grad(lambda p: p.assess({"z": jnp.zeros(2)}, x)[0])(program)
    close(gradient.bound[0], -np.outer([3.0 + 1, 12.0 + 1], np.ones(3)))


def test_bound_arrays_stay_unbatched_under_vmap():
    program = ppl.bind(scaled, jnp.ones((5, 7)), 1.0)
    xs, keys = jnp.ones((11, 7)), jax.random.split(KEY, 11)
    jaxpr = str(jax.make_jaxpr(jax.vmap(program.simulate))(keys, xs))
    assert "f32[5,7]" in jaxpr and "f32[11,5,7]" not in jaxpr


def test_a_trace_holds_no_args_and_no_hot_state():
    def step(ctx, state, t, lm):
        ctx.sample("z", dist.Normal(0.0, 1.0))
        return ppl.Hot(state.value + lm.sum())

    model = ppl.StateSpace(lambda ctx, lm: ppl.Hot(jnp.zeros(13)), step, 4)
    trace = jax.eval_shape(model.simulate, KEY, jnp.ones(17))
    assert {leaf.shape for leaf in jax.tree.leaves(trace)} == {(), (4,)}
    names = {"choices", "score", "log_weight", "retval", "log_probs", "active"}
    assert set(vars(trace)) == names


class Estimated(ppl.EstimatedDistribution):
    """Draws 1.0; the estimate of its log density is whatever the key says."""

    def random_weighted(self, key):
        return jnp.ones(()), jax.random.normal(key)

    def estimate_logpdf(self, key, value):
        return jax.random.normal(key)


@ppl.program
def noisy(ctx):
    x = ctx.sample("x", Estimated())
    return x + ctx.sample("y", dist.Normal(x, 1.0))


def test_estimates_are_stored_and_reused():
    old = noisy.simulate(KEY)
    stored = old.log_probs["x"]
    close(old.score, stored + logp(old.choices["y"], 1.0))
    close(noisy.project(old, ppl.select("x")), stored)
    fresh = jax.random.key(1)
    # y is drawn, so x is estimated again; the old estimate is the stored one (pseudo-marginal)
    new, log_a = noisy.regenerate(fresh, old, ppl.select("y"))
    assert new.log_probs["x"] != stored
    close(log_a, new.log_probs["x"] - stored)
    # x is drawn: both estimates cancel, and the density of y given x is the same
    new, log_a = noisy.regenerate(fresh, old, ppl.select("x"))
    assert new.log_probs["x"] != stored
    close(log_a, 0.0)
    _, log_w, _ = noisy.update(fresh, old, {"y": 0.0})
    assert jnp.isfinite(log_w)


def test_an_estimated_density_needs_a_key():
    choices = {"x": 1.0, "y": 0.0}
    with pytest.raises(ppl.ProgramError, match="estimated.*key=key"):
        noisy.assess(choices)
    assert noisy.assess(choices, key=KEY)[0] != noisy.assess(choices, key=jax.random.key(1))[0]


def test_an_impossible_draw_has_weight_zero():
    @ppl.program
    def empty(ctx):
        ctx.sample("a", dist.Bernoulli(probs=0.5))
        ctx.sample("b", ppl.Token(jnp.zeros(3), mask=jnp.zeros(3, bool)))

    assert empty.generate(KEY, {"a": 1})[1] == -jnp.inf
    assert empty.generate(KEY, {})[1] == -jnp.inf
