"""Combinators: laws, both directions of update, gradients, jit, vmap and loop agree."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from compile_count import compiles

from feynkac import ppl
from feynkac.ppl.compiled import compiled

KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 4000)


def logp(x, m=0.0, s=1.0):
    return -0.5 * ((x - m) / s) ** 2 - np.log(s) - 0.5 * np.log(2 * np.pi)


def z_score(samples, expected):
    samples = np.asarray(samples, np.float64)
    return (samples.mean() - expected) / (samples.std() / np.sqrt(len(samples)))


def left(ctx, x):
    a = ctx.sample("a", dist.Normal(x, 1.0))
    ctx.factor("w", 0.5 * a)
    return a


def right(ctx, x):
    return ctx.sample("b", dist.Normal(0.0, 2.0)) + ctx.sample("c", dist.Normal(x, 2.0))


@ppl.program
def forked(ctx, x):
    up = ctx.sample("up", dist.Bernoulli(0.5))
    return ctx.call("fork", ppl.cond(left, right), up == 1, x)


def test_cond_assess_is_the_density_of_the_branch_taken():
    choices = {"up": 1, "fork": {"true": {"a": 0.3}, "false": {"b": 9.0, "c": 9.0}}}
    log_p, value = forked.assess(choices, 0.1)
    np.testing.assert_allclose(log_p, np.log(0.5) + logp(0.3, 0.1) + 0.15, rtol=1e-5)
    np.testing.assert_allclose(value, 0.3)
    log_p, value = forked.assess({**choices, "up": 0}, 0.1)
    np.testing.assert_allclose(
        log_p, np.log(0.5) + logp(9.0, 0.0, 2.0) + logp(9.0, 0.1, 2.0), rtol=1e-5
    )
    np.testing.assert_allclose(value, 18.0)


def test_cond_under_vmap_is_the_loop_and_untaken_choices_are_zero():
    simulate = jax.jit(lambda k: forked.simulate(k, 0.1))
    batch = jax.jit(jax.vmap(simulate))(KEYS[:8])
    for i in range(8):
        alone = simulate(KEYS[i])
        for one, many in zip(jax.tree.leaves(alone), jax.tree.leaves(batch), strict=True):
            np.testing.assert_allclose(one, many[i], rtol=1e-6)
    up = batch.choices["up"] == 1
    assert up.any() and not up.all()
    fork = batch.choices["fork"]
    for name, taken in (("true", up), ("false", ~up)):
        for site in fork[name]:
            assert ((fork[name][site] != 0) == taken).all()
            assert ((batch.log_probs["fork"][name][site] != 0) == taken).all()
            assert (batch.active["fork"][name][site] == taken).all()
    np.testing.assert_allclose(batch.score + batch.log_weight, [
        forked.assess(jax.tree.map(lambda x, i=i: x[i], batch.choices), 0.1)[0] for i in range(8)
    ], rtol=1e-5)  # fmt: skip


@pytest.mark.parametrize("start", [0, 1])
def test_cond_update_flips_and_flips_back(start):
    old, _ = forked.generate(KEY, {"up": start}, 0.1)
    new, log_w, replaced = forked.update(KEYS[1], old, {"up": 1 - start}, 0.1)
    assert new.choices["up"] == 1 - start
    drawn = sum(jax.tree.leaves(new.log_probs["fork"]))
    both = new.score + new.log_weight - drawn - old.score - old.log_weight
    np.testing.assert_allclose(log_w, both, rtol=1e-4, atol=1e-5)
    again, back, _ = forked.update(KEYS[2], new, replaced, 0.1)
    for x, y in zip(jax.tree.leaves(again.choices), jax.tree.leaves(old.choices), strict=True):
        np.testing.assert_array_equal(x, y)
    np.testing.assert_allclose(again.score, old.score, rtol=1e-6)
    # on the way back nothing was drawn
    np.testing.assert_allclose(back, -(new.score + new.log_weight) + old.score + old.log_weight,
                               rtol=1e-4, atol=1e-5)  # fmt: skip


def test_cond_generate_is_properly_weighted():
    # E[w 1(up)] = p(up) p(a), whatever is given in the other branch
    given = {"fork": {"true": {"a": 0.7}}}
    trace, log_w = jax.jit(jax.vmap(lambda k: forked.generate(k, given, 0.0)))(KEYS)
    weight = np.exp(log_w) * np.asarray(trace.choices["up"] == 1)
    assert abs(z_score(weight, 0.5 * np.exp(logp(0.7) + 0.35))) < 4


def test_regenerate_leaves_the_target_invariant_through_a_cond():
    """Metropolis-Hastings from exact draws stays exact."""

    def once(key):
        k0, k1, k2 = jax.random.split(key, 3)
        trace = free.simulate(k0, 0.5)
        new, log_a = free.regenerate(k1, trace, ppl.select("up"), 0.5)
        accept = jnp.log(jax.random.uniform(k2)) < log_a
        return jnp.where(accept, new.retval, trace.retval), accept

    @ppl.program
    def free(ctx, x):
        up = ctx.sample("up", dist.Bernoulli(0.3))
        return ctx.call("fork", ppl.cond(plain, right), up == 1, x)

    plain = ppl.program(lambda ctx, x: ctx.sample("a", dist.Normal(x, 1.0)))
    values, accepted = jax.jit(jax.vmap(once))(KEYS)
    assert accepted.all()  # no observation: every proposal from the prior is accepted
    assert abs(z_score(values, 0.5)) < 4
    second = 0.3 * (1 + 0.25) + 0.7 * (8 + 0.25)
    assert abs(z_score(np.asarray(values) ** 2, second)) < 4


def test_cond_is_one_sided_outside_vmap():
    calls = []

    def loud(ctx, x):
        jax.debug.callback(lambda: calls.append(1))
        return x

    def quiet(ctx, x):
        return x

    program = ppl.program(lambda ctx, p: ctx.call("c", ppl.cond(loud, quiet), p, 1.0))
    run = jax.jit(lambda p: program.simulate(KEY, p).retval)
    run(False).block_until_ready()
    jax.effects_barrier()
    assert not calls
    run(True).block_until_ready()
    jax.effects_barrier()
    assert len(calls) == 1


def dangerous(ctx, x):
    ctx.factor("f", jnp.log(x))
    return jnp.log(x) + ctx.sample("a", dist.Normal(jnp.sqrt(x), 1.0))


def harmless(ctx, x):
    return 2.0 * x + 0.0 * ctx.sample("b", dist.Normal(0.0, 1.0))


def in_cond(ctx, x):
    return ctx.call("c", ppl.cond(dangerous, harmless), x > 0, x)


def in_mix(ctx, x):
    logits = jnp.where(x > 0, jnp.array([0.0, -jnp.inf]), jnp.array([-jnp.inf, 0.0]))
    return ctx.call("c", ppl.mix(dangerous, harmless), logits, x)


def in_mask(ctx, x):
    return ctx.call("c", ppl.mask(dangerous), x > 0, x) + jnp.where(x > 0, 0.0, 2.0 * x)


def in_nested_cond(ctx, x):
    inner = ppl.program(lambda ctx, x: ctx.call("i", ppl.cond(dangerous, harmless), x > -5, x))
    return ctx.call(
        "c", ppl.cond(dangerous, lambda ctx, x: ctx.call("j", inner, 0.5 * x - 10)), x > 0, x
    )


def in_closure(ctx, x):
    def closed(ctx):
        return dangerous(ctx, x)

    return ctx.call("c", ppl.cond(closed, lambda ctx: 2.0 * x), x > 0)


@pytest.mark.parametrize(
    "fn", [in_cond, in_mix, in_mask, in_nested_cond, in_closure], ids=lambda f: f.__name__
)
def test_no_nan_from_an_untaken_branch(fn):
    program = ppl.program(fn)

    def loss(x):
        trace = program.simulate(KEY, x)
        return trace.retval + trace.score + trace.log_weight

    xs = jnp.array([-1.0, 0.0, 2.0])
    gradients = jax.jit(jax.vmap(jax.grad(loss)))(xs)
    assert jnp.isfinite(gradients).all()
    total = jax.jit(jax.grad(lambda xs: jax.vmap(loss)(xs).sum()))(xs)
    np.testing.assert_allclose(total, gradients, rtol=1e-6)
    alone = [jax.jit(jax.grad(loss))(x) for x in xs]
    np.testing.assert_allclose(alone, gradients, rtol=1e-6)
    if fn is in_cond:
        np.testing.assert_allclose(gradients[:2], 2.0)
        assert gradients[2] > 0.9  # log twice, and the square root


def times(ctx, matrix, x):
    x = ctx.sample("z", dist.Normal(matrix @ x, 1.0).to_event(1))
    ctx.factor("f", x.sum())
    return x


def test_bound_arrays_stay_unbatched_in_branches():
    n, d = 11, 7

    def run(key, flag, x, matrix):
        one, other = ppl.bind(times, matrix), ppl.bind(times, 2.0 * matrix)
        a = ppl.cond(one, other).simulate(key, flag, x)
        b = ppl.mask(one).simulate(key, flag, x)
        c = ppl.mix(one, other).simulate(key, jnp.zeros(2), x)
        return a.score + b.log_weight + c.log_weight

    batched = jax.vmap(run, in_axes=(0, 0, 0, None))
    twice = jax.vmap(batched, in_axes=(None, 0, None, None))
    keys, x, matrix = KEYS[:n], jnp.ones((n, d)), jnp.ones((d, d))
    flags = jnp.arange(n) % 2 == 0
    for fn, each in ((batched, flags), (twice, jnp.stack([flags, ~flags]))):
        jaxpr = str(jax.make_jaxpr(fn)(keys, each, x, matrix))
        assert f"f32[{d},{d}]" in jaxpr
        assert f",{d},{d}]" not in jaxpr
    single = jax.jit(run)
    loop = [single(keys[i], flags[i], x[i], matrix) for i in range(n)]
    np.testing.assert_allclose(jax.jit(batched)(keys, flags, x, matrix), loop, rtol=1e-5)


def test_mix_law():
    def part(m):
        return lambda ctx: ctx.sample("x", dist.Normal(m, 0.1))

    logits = jnp.log(jnp.array([0.2, 0.5, 0.3]))
    program = ppl.program(
        lambda ctx: ctx.call("m", ppl.mix(part(0.0), part(1.0), part(5.0)), logits)
    )
    trace = jax.jit(jax.vmap(program.simulate))(KEYS)
    for i, p in enumerate((0.2, 0.5, 0.3)):
        assert abs(z_score(trace.choices["m"]["component"] == i, p)) < 4
    assert abs(z_score(trace.retval, 2.0)) < 4
    given = {"m": {"component": 2, "2": {"x": 4.9}, "0": {"x": 0.0}, "1": {"x": 0.0}}}
    np.testing.assert_allclose(
        program.assess(given)[0], np.log(0.3) + logp(4.9, 5.0, 0.1), rtol=1e-4
    )


def test_mask_law():
    program = ppl.program(lambda ctx, on: ctx.call("m", ppl.mask(left), on, 1.0))
    off, on = (program.simulate(KEY, jnp.array(x)) for x in (False, True))
    assert off.retval == off.score == off.log_weight == off.choices["m"]["a"] == 0.0
    alone = ppl.program(lambda ctx: ctx.call("m", ppl.program(left), 1.0)).simulate(KEY)
    np.testing.assert_allclose(on.retval, alone.retval)
    np.testing.assert_allclose(on.score + on.log_weight, alone.score + alone.log_weight, rtol=1e-6)
    new, log_w, _ = program.update(KEY, on, {}, jnp.array(False))
    np.testing.assert_allclose(log_w, -(on.score + on.log_weight), rtol=1e-6)
    assert new.score == 0.0


def walk(ctx, carry, x):
    z = ctx.sample("z", dist.Normal(carry, 1.0))
    ctx.factor("f", 0.1 * z if x is None else 0.1 * z * x)
    return z, 2.0 * z


@pytest.mark.parametrize("length", [0, 1, 4])
def test_scan_is_the_loop(length):
    xs = jnp.arange(float(length))
    zs = jax.random.normal(KEY, (length,))
    scan = ppl.scan(walk)
    log_p, (carry, ys) = scan.assess({"z": zs}, 0.5, xs)
    expected, state = 0.0, 0.5
    for z, x in zip(np.asarray(zs), np.asarray(xs), strict=True):
        expected += logp(z, state) + 0.1 * z * x
        state = z
    np.testing.assert_allclose(log_p, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(carry, state)
    np.testing.assert_allclose(ys, 2 * zs)
    trace = scan.simulate(KEY, 0.5, xs)
    assert trace.choices["z"].shape == trace.log_probs["z"].shape == (length,)
    np.testing.assert_allclose(
        trace.score + trace.log_weight, scan.assess(trace.choices, 0.5, xs)[0], rtol=1e-5, atol=1e-6
    )


def test_scan_without_xs():
    trace = ppl.scan(walk, length=3).simulate(KEY, 0.0)
    assert trace.choices["z"].shape == (3,)
    again = ppl.scan(walk, length=3).simulate(KEY, 0.0, None)
    np.testing.assert_array_equal(again.choices["z"], trace.choices["z"])


def test_scan_does_not_store_its_carry():
    def big(ctx, carry, x):
        return carry + ctx.sample("z", dist.Normal(0.0, 1.0)), None

    shapes = jax.eval_shape(
        lambda k: ppl.scan(big, length=1000).simulate(k, jnp.zeros((50, 50))), jax.random.key(0)
    )
    sizes = {name: [x.size for x in jax.tree.leaves(v)] for name, v in vars(shapes).items()}
    assert max(sizes["choices"] + sizes["log_probs"]) == 1000
    assert sizes["retval"] == [2500]  # the last carry only


def test_a_long_scan_compiles_once():
    @compiled
    def score(key, program, start):
        return program.simulate(key, start).score

    program = ppl.scan(walk, length=1000)
    starts = [jnp.asarray(x) for x in (0.0, 1.0)]
    with compiles() as c:
        score(KEY, program, starts[0])
    assert c.count <= 1, c.names
    with compiles() as c:
        score(KEY, ppl.scan(walk, length=1000), starts[1])
    assert c.count == 0, c.names


def test_partial_steps_of_a_scan():
    mask = jnp.array([True, False, True])
    trace, log_w = ppl.scan(walk, length=3).generate(
        KEY, {"z": ppl.Partial(jnp.ones(3), mask)}, 0.0
    )
    z = np.asarray(trace.choices["z"])
    assert z[0] == z[2] == 1.0 != z[1]
    np.testing.assert_allclose(log_w, logp(1.0) + logp(1.0, z[1]) + 0.1 * z.sum(), rtol=1e-5)
    new, log_a = ppl.scan(walk, length=3).regenerate(KEYS[1], trace, ppl.select("z")[1:], 0.0)
    assert new.choices["z"][0] == 1.0 and (new.choices["z"][1:] != trace.choices["z"][1:]).all()
    np.testing.assert_allclose(log_a, new.log_weight - trace.log_weight, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        ppl.scan(walk, length=3).project(trace, ppl.select("z")[1]), logp(z[1], 1.0), rtol=1e-5
    )


def pair(ctx, x, p):
    return ctx.sample("z", dist.Normal(x + p["m"], 1.0))


@pytest.mark.parametrize(
    "in_axes, args, means",
    [
        (0, (jnp.arange(3.0), {"m": jnp.ones(3)}), [1.0, 2.0, 3.0]),
        ((0, None), (jnp.arange(3.0), {"m": jnp.ones(())}), [1.0, 2.0, 3.0]),
        ((None, {"m": 0}), (1.0, {"m": jnp.arange(3.0)}), [1.0, 2.0, 3.0]),
        ((None, 0), (1.0, {"m": jnp.arange(3.0)}), [1.0, 2.0, 3.0]),
    ],
)
def test_vmap_in_axes(in_axes, args, means):
    program = ppl.vmap(pair, in_axes=in_axes)
    zs = jnp.array([0.5, -1.0, 2.0])
    log_p, value = program.assess({"z": zs}, *args)
    np.testing.assert_allclose(log_p, sum(map(logp, np.asarray(zs), means)), rtol=1e-5)
    np.testing.assert_array_equal(value, zs)
    draws = program.simulate(KEY, *args).choices["z"]
    assert len(set(np.asarray(draws - jnp.array(means)).tolist())) == 3  # independent


def test_vmap_axis_one_and_axis_size():
    program = ppl.vmap(lambda ctx, x: ctx.sample("z", dist.Normal(x, 1.0).to_event(1)), in_axes=1)
    trace = program.simulate(KEY, jnp.zeros((2, 5)))
    assert trace.choices["z"].shape == (5, 2) and trace.log_probs["z"].shape == (5,)
    none = ppl.vmap(lambda ctx: ctx.sample("z", dist.Normal(0.0, 1.0)), axis_size=0).simulate(KEY)
    assert none.choices["z"].shape == (0,) and none.score == 0.0


def test_scan_of_vmap_of_cond_under_jit_and_vmap():
    def cell(ctx, carry, x):
        on = ctx.sample("on", dist.Bernoulli(0.5))
        return ctx.call("c", ppl.cond(left, right), on == 1, carry + x)

    def row(ctx, carry, x):
        out = ctx.call("v", ppl.vmap(cell, in_axes=(0, None)), carry, x)
        return out, None

    program = ppl.scan(row)
    args = (jnp.zeros(3), jnp.arange(2.0))
    batch = jax.jit(jax.vmap(lambda k: program.simulate(k, *args)))(KEYS[:4])
    assert batch.choices["v"]["c"]["true"]["a"].shape == (4, 2, 3)
    alone = program.simulate(KEYS[2], *args)
    for x, y in zip(jax.tree.leaves(alone), jax.tree.leaves(batch), strict=True):
        np.testing.assert_allclose(x, y[2], rtol=1e-5, atol=1e-6)
    log_p, _ = program.assess(alone.choices, *args)
    np.testing.assert_allclose(log_p, alone.score + alone.log_weight, rtol=1e-5)
    flipped = {"v": {"on": 1 - alone.choices["v"]["on"]}}
    new, log_w, back = program.update(KEY, alone, flipped, *args)
    again, log_b, _ = program.update(KEYS[1], new, back, *args)
    for x, y in zip(jax.tree.leaves(alone.choices), jax.tree.leaves(again.choices), strict=True):
        np.testing.assert_array_equal(x, y)
    np.testing.assert_allclose(again.score, alone.score, rtol=1e-6)
    assert jnp.isfinite(log_w)
