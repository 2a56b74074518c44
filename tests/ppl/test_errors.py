"""Every misuse is an error that names the site and says what to do."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import numpyro.distributions as dist
import pytest

from feynkac import inference, ppl
from feynkac.ppl.compiled import compiled

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def no_shape_checks():
    """As users run it: the annotations are checked in tests only, and would speak first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


NORMAL = dist.Normal(0.0, 1.0)


def run(fn, *args):
    return ppl.program(fn).simulate(KEY, *args)


def raw_scan(ctx):
    return jax.lax.scan(lambda c, _: (c + ctx.sample("z", NORMAL), None), 0.0, length=3)[0]


def raw_jit(ctx):
    return jax.jit(lambda: ctx.sample("z", NORMAL))()


def raw_vmap(ctx):
    return jax.vmap(lambda m: ctx.sample("z", dist.Normal(m, 1.0)))(jnp.zeros(3))


def raw_cond(ctx):
    return jax.lax.cond(jnp.array(True), lambda: ctx.sample("z", NORMAL), lambda: 0.0)


def raw_grad(ctx):
    return jax.grad(lambda m: ctx.sample("z", dist.Normal(m, 1.0)))(0.0)


def raw_while(ctx):
    return jax.lax.while_loop(lambda c: c < 1.0, lambda c: c + ctx.sample("z", NORMAL), 0.0)


def raw_observe(ctx):
    return jax.vmap(lambda x: ctx.observe("z", NORMAL, x))(jnp.zeros(3))


RAW = [raw_scan, raw_jit, raw_vmap, raw_cond, raw_grad, raw_while, raw_observe]


@pytest.mark.parametrize("fn", RAW, ids=lambda f: f.__name__)
@pytest.mark.parametrize("under_jit", [False, True])
def test_site_inside_raw_transformation(fn, under_jit):
    simulate = ppl.program(fn).simulate
    with pytest.raises(ppl.ProgramError, match=r"'z' is inside a raw JAX.*ppl\.scan"):
        (jax.jit(simulate) if under_jit else simulate)(KEY)


@pytest.mark.parametrize(
    "wrap", [lambda f: f, jax.jit, lambda f: jax.vmap(f, axis_size=2, in_axes=None)]
)
def test_transformations_around_a_program_are_fine(wrap):
    inner = ppl.program(lambda ctx: ctx.sample("z", NORMAL))
    program = ppl.program(lambda ctx: ctx.call("a", ppl.vmap(inner, axis_size=3)).sum())
    assert jnp.isfinite(wrap(lambda key: program.simulate(key).score)(KEY)).all()


def test_context_outlives_no_program():
    kept = []
    program = ppl.program(lambda ctx: kept.append(ctx))
    program.simulate(KEY)
    with pytest.raises(ppl.ProgramError, match="'late'.*has ended"):
        kept[0].sample("late", NORMAL)


def nested(fn):
    """`fn` called as b inside a call a."""
    middle = ppl.program(lambda ctx: ctx.call("b", ppl.program(fn)))
    return ppl.program(lambda ctx: ctx.call("a", middle))


@pytest.mark.parametrize(
    "fn, message",
    [
        (lambda ctx: (ctx.sample("x", NORMAL), ctx.sample("x", NORMAL)), r"'a/b/x' appears twice"),
        (lambda ctx: (ctx.sample("x", NORMAL), ctx.factor("x", 0.0)), r"'a/b/x' appears twice"),
        (lambda ctx: ctx.sample("x", 3.0), r"'a/b/x' got a float, not a distribution"),
        (lambda ctx: ctx.sample("x", lambda: 0), r"'a/b/x' got a function.*ctx\.call"),
        (lambda ctx: ctx.call("x", lambda ctx: 0), r"'a/b/x' needs a program.*@ppl\.program"),
        (lambda ctx: ctx.call("x", NORMAL), r"'a/b/x' needs a program, got Normal.*ctx\.sample"),
        (lambda ctx: ctx.factor("x", jnp.zeros(3)), r"'a/b/x' has shape \(3,\).*its sum"),
        (
            lambda ctx: ctx.observe("x", NORMAL, jnp.zeros(3)),
            r"'a/b/x' has shape \(3,\), but Normal",
        ),
        (lambda ctx: ctx.observe("x", 1.0, 1.0), r"'a/b/x' needs a NumPyro distribution"),
        (lambda ctx: ctx.observe("x", dist.Poisson(2.0), 1.5), r"'a/b/x' is float32, but Poisson"),
        (lambda ctx: ctx.sample("", NORMAL), "non-empty string"),
        (lambda ctx: ctx.sample(3, NORMAL), "non-empty string"),
        (lambda ctx: NORMAL, "returned a Normal"),
        (lambda ctx: "text", "returned a str"),
    ],
)
def test_misuse_in_a_nested_call(fn, message):
    with pytest.raises(ppl.ProgramError, match=message):
        nested(fn).simulate(KEY)


TWO = nested(lambda ctx: (ctx.sample("token", NORMAL), ctx.observe("seen", NORMAL, 1.0)))


@pytest.mark.parametrize(
    "choices, message",
    [
        ({}, r"no value for site 'a/b/token'.*generate"),
        ({"a": {"b": {"tokne": 1.0, "token": 1.0}}}, r"'a/b/tokne'.*Did you mean 'token'"),
        ({"a": {"b": {"q": 1.0, "token": 1.0}}}, r"'a/b/q'.*It has \['token'\]"),
        ({"a": {"b": {"seen": 1.0, "token": 1.0}}}, r"'a/b/seen'.*is observed or a factor"),
        ({"a": {"b": {"token": jnp.zeros(2)}}}, r"'a/b/token' has shape \(2,\), but Normal.*\(\)"),
        ({"a": {"b": {"token": {"x": 0.0}}}}, r"'a/b/token'"),
        ({"a": {"b": 1.0}}, r"'a/b' is a call: constrain its sites in a dict"),
        ({"a": {"b": {"token": ppl.Partial(jnp.zeros(()), jnp.ones(2, bool))}}}, "'a/b/token'"),
    ],
)
def test_bad_values(choices, message):
    with pytest.raises(ppl.ProgramError, match=message):
        TWO.assess(choices)


@pytest.mark.parametrize(
    "distribution, value, ok",
    [
        (dist.Poisson(2.0), 1.0, False),
        (dist.Bernoulli(0.5), True, True),
        (dist.Normal(0.0, 1.0), 1, True),
        (dist.Normal(0.0, 1.0), np.float64(1.0), True),
        (ppl.Token(jnp.zeros(3)), 1, True),
        (ppl.Token(jnp.zeros(3)), 1.0, False),
    ],
)
def test_dtypes(distribution, value, ok):
    program = ppl.program(lambda ctx: ctx.sample("x", distribution))
    if ok:
        assert jnp.isfinite(program.assess({"x": value})[0])
    else:
        with pytest.raises(ppl.ProgramError, match="'x' is float.*convert it first"):
            program.assess({"x": value})


def draw(ctx, *args):
    return ctx.sample("x", NORMAL)


@pytest.mark.parametrize(
    "combinator, args, message",
    [
        (ppl.cond(draw, draw), (1.0,), "'c' needs a boolean scalar first, got float32"),
        (ppl.cond(draw, draw), (jnp.ones(2, bool),), "'c' needs a boolean scalar"),
        (ppl.cond(draw, draw), (), "'c' needs a boolean scalar first"),
        (ppl.cond(draw, lambda ctx: jnp.zeros(2)), (True,), "branches of 'c' return different"),
        (ppl.cond(draw, lambda ctx: jnp.int32(0)), (True,), "branches of 'c' return different"),
        (ppl.cond(draw, lambda ctx: None), (True,), "branches of 'c' return different"),
        (ppl.mask(draw), (1,), "'c' needs a boolean scalar first, got int32"),
        (ppl.mask(draw), (), "'c' needs a boolean scalar first"),
        (ppl.mix(draw, draw), (jnp.zeros(3),), r"'c' of 2 programs needs logits of shape \(2,\)"),
        (ppl.mix(draw, draw), (), r"'c' of 2 programs needs logits"),
        (ppl.scan(draw), (0.0, jnp.zeros(3)), "'c' must return a pair"),
        (ppl.scan(draw), (0.0,), "'c' has lengths .*length=n"),
        (ppl.scan(draw), (), "'c' takes"),
        (ppl.scan(draw), (0.0, jnp.zeros(3), 1.0), "'c' takes .*got 3"),
        (ppl.scan(draw), (0.0, 1.0), "'c' got a scalar in xs"),
        (ppl.scan(draw), (0.0, (jnp.zeros(3), jnp.zeros(2))), r"'c' has lengths \[2, 3\]"),
        (ppl.scan(draw, length=2), (0.0, jnp.zeros(3)), r"'c' has lengths \[2, 3\]"),
        (
            ppl.scan(lambda ctx, c, x: (jnp.int32(0), None), length=2),
            (0.0,),
            "'c' must return a carry",
        ),
        (ppl.scan(lambda ctx, c, x: ((c, c), None), length=2), (0.0,), "'c' must return a carry"),
        (ppl.vmap(draw), (jnp.zeros(3), jnp.zeros(2)), r"'c' cannot tell its size.*\[2, 3\]"),
        (ppl.vmap(draw), (), "'c' cannot tell its size"),
        (ppl.vmap(draw), (1.0,), "'c' got a value without axis 0"),
        (ppl.vmap(draw, in_axes=(0, None)), (jnp.zeros(3),), "'c' has in_axes for 2 arguments"),
        (ppl.vmap(draw, axis_size=3), (jnp.zeros(2),), r"'c' cannot tell its size.*\[2, 3\]"),
    ],
)
def test_misused_combinators(combinator, args, message):
    with pytest.raises(ppl.ProgramError, match=message):
        run(lambda ctx: ctx.call("c", combinator, *args))


@pytest.mark.parametrize(
    "combinator, args, given, message",
    [
        (ppl.cond(draw, draw), (True,), {"x": 0.0}, r"\['x'\] under 'c'.*'true' and 'false'"),
        (ppl.mix(draw, draw), (jnp.zeros(2),), {"x": 0.0}, r"\['x'\] under 'c'.*'component'"),
        (ppl.vmap(draw, axis_size=3), (), {"x": 0.0}, r"under 'c' has shape \(\).*3 instances"),
        (ppl.vmap(draw, axis_size=3), (), {"x": jnp.zeros(2)}, r"under 'c' has shape \(2,\)"),
        (
            ppl.vmap(draw, axis_size=3),
            (),
            {"y": jnp.zeros(3)},
            r"'c/y'.*Did you mean|'c/y'.*It has",
        ),
        (ppl.cond(draw, draw), (True,), {"true": {"y": 0.0}}, r"'c/true/y'"),
    ],
)
def test_bad_values_under_combinators(combinator, args, given, message):
    program = ppl.program(lambda ctx: ctx.call("c", combinator, *args))
    with pytest.raises(ppl.ProgramError, match=message):
        program.generate(KEY, {"c": given})


def test_ppl_combinators_of_nothing():
    with pytest.raises(ppl.ProgramError, match="at least one"):
        ppl.mix()


def init(ctx):
    return ctx.sample("z0", NORMAL)


def step(ctx, state, t):
    return ctx.sample("z", dist.Normal(state, 1.0))


@pytest.mark.parametrize(
    "bad_step", [lambda ctx, s, t: jnp.zeros(2), lambda ctx, s, t: (s,), lambda ctx, s, t: t]
)
@pytest.mark.parametrize("done", [None, lambda s: s > 1.0])
def test_step_returns_another_state(bad_step, done):
    with pytest.raises(ppl.ProgramError, match="step must return a state like the one"):
        ppl.StateSpace(init, bad_step, 3, done).simulate(KEY)


def weighted(ctx):
    x = ctx.sample("x", NORMAL)
    ctx.call("c", ppl.program(lambda ctx: ctx.factor("f", 0.0 * x)))


def marginal(model, *args):
    return ppl.marginal(ppl.Target(model, args), ppl.select("x"), None)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ppl.StateSpace(init, step, -1), "non-negative int"),
        (lambda: ppl.StateSpace(init, step, 1.5), "non-negative int"),
        (lambda: ppl.StateSpace(init, step, 3, at_length=ppl.Reject()), "without done="),
        (lambda: ppl.StateSpace(init, step, 3, lambda s: s).simulate(KEY), "must be one boolean"),
        (
            lambda: ppl.StateSpace(init, step, 3, lambda s: s[None] > 0).simulate(KEY),
            "must be one boolean",
        ),
        (
            lambda: ppl.StateSpace(init, lambda c, s, t: c.sample("z0", NORMAL), 3).simulate(KEY),
            r"both have a site named \['z0'\]",
        ),
        (
            lambda: ppl.StateSpace(init, step, 3).generate(KEY, {"z": 1.0}),
            r"step site \(\['z'\].*3 steps",
        ),
        (
            lambda: ppl.StateSpace(init, step, 3).generate(KEY, {"z": jnp.zeros(2)}),
            r"step site \(\['z'\].*3 steps",
        ),
        (
            lambda: ppl.StateSpace(init, step, 3).generate(KEY, {"zz": jnp.zeros(3)}),
            "'zz'.*Did you mean 'z'",
        ),
        (lambda: ppl.Target(ppl.StateSpace(init, step, 3), 1.0), r"args=\(1\.0,\)"),
        (
            lambda: ppl.Target(ppl.program(init)).state_space().generate(KEY, {"z": 1.0}),
            "'z'.*Did you mean 'z0'",
        ),
        (lambda: ppl.Target(3.0), "needs a program"),
        (lambda: ppl.program(init)(1.0), "instead of calling it"),
        (lambda: ppl.bind(3.0, 1.0), "bind takes a program"),
        (
            lambda: ppl.marginal(
                ppl.Target(ppl.program(init), (), {"z0": 0.0}), ppl.select("z"), None
            ),
            "without constraints: use ppl.normalize",
        ),
        (lambda: marginal(weighted), "'c/f' is an observe or a factor"),
        (
            lambda: marginal(ppl.vmap(lambda ctx, y: ctx.observe("y", NORMAL, y)), jnp.zeros(2)),
            "'y' is an observe or a factor, .* use ppl.normalize",
        ),
        (
            lambda: marginal(ppl.StateSpace(init, step, 3, lambda s: s > 1.0, ppl.Reject())),
            "at_length=Reject.* use ppl.normalize",
        ),
        (
            lambda: inference.SMC(2).run(
                KEY, ppl.StateSpace(init, lambda c, s, t: c.sample("z0", NORMAL), 3)
            ),
            r"both have a site named \['z0'\]",
        ),
    ],
)
def test_models_and_targets(make, message):
    with pytest.raises(ppl.ProgramError, match=message):
        make()


@pytest.mark.parametrize(
    "selection, message",
    [
        (ppl.select("z0")[1:], "cannot select steps of site 'z0'"),
        (ppl.select("zz"), "'zz', which is no site: did you mean 'z"),
        (~ppl.select("z", ("z0", "x"))[2:], "'z0/x', which is no site"),
    ],
)
def test_selections(selection, message):
    model = ppl.StateSpace(init, step, 3)
    with pytest.raises(ppl.ProgramError, match=message):
        model.regenerate(KEY, model.simulate(KEY), selection)


def test_selection_stride():
    with pytest.raises(ppl.ProgramError, match="stride"):
        ppl.select("z")[::2]


@compiled
def simulate(key, program):
    return program.simulate(key).score


GLOBAL_NUMPY = np.zeros(300_000)
GLOBAL_JAX = jnp.zeros(300_000)
GLOBAL_NESTED = {"table": [GLOBAL_NUMPY]}


@pytest.mark.parametrize("make", [np.zeros, jnp.zeros])
def test_large_array_in_a_closure(make):
    table = make(300_000, np.float32)
    program = ppl.program(lambda ctx: ctx.factor("f", table[0]))
    with pytest.raises(ppl.ProgramError, match=r"'table'.*1\.1 MB.*ppl\.bind\(program, table\)"):
        simulate(KEY, program)
    small = make(200_000, np.float32)
    assert simulate(KEY, ppl.program(lambda ctx: ctx.factor("f", small[0]))) == 0.0


@pytest.mark.parametrize(
    "fn, name",
    [
        (lambda ctx: ctx.factor("f", GLOBAL_NUMPY[0]), "GLOBAL_NUMPY"),
        (lambda ctx: ctx.factor("f", GLOBAL_JAX[0]), "GLOBAL_JAX"),
        (lambda ctx: ctx.factor("f", [GLOBAL_JAX[i] for i in range(2)][0]), "GLOBAL_JAX"),
        (lambda ctx: ctx.factor("f", GLOBAL_NESTED["table"][0][0]), "GLOBAL_NESTED"),
    ],
)
def test_large_array_in_a_global(fn, name):
    with pytest.raises(ppl.ProgramError, match=f"{name!r}.*bind"):
        simulate(KEY, ppl.program(fn))


class State:
    GLOBAL_JAX = 1.0


def test_an_attribute_of_the_name_of_a_large_global_is_no_error():
    assert simulate(KEY, ppl.program(lambda ctx: ctx.factor("f", State.GLOBAL_JAX))) == 0.0


def test_bound_large_array_is_fine():
    program = ppl.bind(lambda ctx, table: ctx.factor("f", table[0]), GLOBAL_JAX)
    assert simulate(KEY, program) == 0.0


def test_estimated_density_needs_a_key():
    class Coin(ppl.EstimatedDistribution):
        def random_weighted(self, key):
            return jnp.zeros(()), jnp.zeros(())

        def estimate_logpdf(self, key, value):
            return jnp.zeros(())

    program = nested(lambda ctx: ctx.sample("x", Coin()))
    with pytest.raises(ppl.ProgramError, match="'a/b/x' is estimated.*key=key"):
        program.assess({"a": {"b": {"x": 0.0}}})
    assert program.assess({"a": {"b": {"x": 0.0}}}, key=KEY)[0] == 0.0
