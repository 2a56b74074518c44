"""State-space models: finishing, the law at full length, edits that move the end, replay."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from feynkac import ppl

KEY = jax.random.key(0)
T = 5


class State(eqx.Module):
    last: jax.Array
    count: jax.Array
    memory: ppl.Hot


def init(ctx, start):
    last = ctx.sample("first", dist.Categorical(probs=jnp.array([0.5, 0.5])))
    return State(last, jnp.int32(0), ppl.Hot(jnp.zeros(T + 1).at[0].set(1.0 + start)))


def step(ctx, state, t, start):
    token = ctx.sample("token", dist.Categorical(probs=jnp.array([0.4, 0.35, 0.25])))
    ctx.factor("f", 0.1 * (t + 1).astype(float))
    memory = state.memory.value.at[t + 1].set(state.memory.value[t] + token.astype(float))
    return State(token, state.count + 1, ppl.Hot(memory))


def ended(state):
    return state.last == 2


PROBS = np.log([0.4, 0.35, 0.25])
MODEL = ppl.StateSpace(init, step, T, done=ended)
# the tokens, and how many of them are made
SEQUENCES = [([0, 1, 0, 1, 0], 5), ([0, 0, 2, 0, 0], 3), ([2, 0, 0, 0, 0], 1), ([0, 0, 0, 0, 2], 5)]


def choices(tokens, first=0):
    return {"first": first, "token": jnp.array(tokens)}


def expected(tokens, n):
    return np.log(0.5) + PROBS[tokens[:n]].sum() + 0.1 * n * (n + 1) / 2


@pytest.mark.parametrize("tokens, n", SEQUENCES)
def test_assess_counts_until_done(tokens, n):
    log_p, state = MODEL.assess(choices(tokens), 0.0)
    np.testing.assert_allclose(log_p, expected(tokens, n), rtol=1e-5)
    assert state.count == n and state.last == tokens[n - 1]
    assert state.memory.value is None  # hot state is in no trace


def test_reject_forbids_the_unfinished():
    model = ppl.StateSpace(init, step, T, done=ended, at_length=ppl.Reject())
    for tokens, n in SEQUENCES:
        log_p, _ = model.assess(choices(tokens), 0.0)
        want = expected(tokens, n) if 2 in tokens else -np.inf
        np.testing.assert_allclose(log_p, want, rtol=1e-5)


def test_done_at_init():
    model = ppl.StateSpace(init, step, T, done=lambda state: state.last == 1)
    log_p, state = model.assess(choices([0, 0, 0, 0, 0], first=1), 0.0)
    np.testing.assert_allclose(log_p, np.log(0.5), rtol=1e-6)
    assert state.count == 0 and state.last == 1


def test_after_done_choices_are_zero_inactive_and_free():
    keys = jax.random.split(KEY, 200)
    traces = jax.jit(jax.vmap(lambda k: MODEL.simulate(k, 0.0)))(keys)
    tokens = np.asarray(traces.choices["token"])
    before = np.cumsum(tokens == 2, axis=1) - (tokens == 2) == 0
    assert (~before).any()
    assert (tokens[~before] == 0).all()
    assert (np.asarray(traces.log_probs["token"])[~before] == 0).all()
    np.testing.assert_array_equal(traces.active["token"], before)
    n = before.sum(1)
    np.testing.assert_array_equal(traces.retval.count, n)
    np.testing.assert_allclose(traces.log_weight, 0.1 * n * (n + 1) / 2, rtol=1e-5)
    score = np.log(0.5) + np.where(before, PROBS[tokens], 0).sum(1)
    np.testing.assert_allclose(traces.score, score, rtol=1e-5)
    z = (n == 1).mean() - 0.25
    assert abs(z / np.sqrt(0.25 * 0.75 / 200)) < 4


def test_assessing_what_lies_after_the_end_changes_nothing():
    a, _ = MODEL.assess(choices([0, 2, 0, 0, 0]), 0.0)
    b, _ = MODEL.assess(choices([0, 2, 1, 2, 1]), 0.0)
    assert a == b


@pytest.mark.parametrize(
    "start, change",
    [([0, 0, 0, 1, 1], [0, 2, 0, 0, 0]), ([0, 2, 0, 0, 0], [0, 1, 0, 0, 0])],
    ids=["shorter", "longer"],
)
def test_update_moves_the_end_and_back(start, change):
    old, _ = MODEL.generate(KEY, choices(start), 0.0)
    edit = {"token": ppl.Partial(jnp.array(change), jnp.arange(T) == 1)}
    new, log_w, back = MODEL.update(jax.random.key(1), old, edit, 0.0)
    assert new.choices["token"][1] == change[1]
    drawn = jnp.where(old.active["token"], 0.0, new.log_probs["token"]).sum()
    want = (new.score + new.log_weight - drawn) - (old.score + old.log_weight)
    np.testing.assert_allclose(log_w, want, rtol=1e-4, atol=1e-5)
    again, _, _ = MODEL.update(jax.random.key(2), new, back, 0.0)
    np.testing.assert_array_equal(again.choices["token"], old.choices["token"])
    np.testing.assert_allclose(
        again.score + again.log_weight, old.score + old.log_weight, rtol=1e-6
    )


def test_regenerate_a_suffix_with_traced_t():
    old, _ = MODEL.generate(KEY, choices([0, 1, 0, 0, 1]), 0.0)

    @jax.jit
    def move(key, t):
        return MODEL.regenerate(key, old, ppl.select("token")[t:], 0.0)

    for t in (0, 2, 4, 5):
        new, log_a = move(jax.random.key(t), t)
        np.testing.assert_array_equal(new.choices["token"][:t], old.choices["token"][:t])
        # fresh densities cancel: what is left are the factors
        np.testing.assert_allclose(log_a, new.log_weight - old.log_weight, rtol=1e-4, atol=1e-5)
    log_p = MODEL.project(old, ppl.select("token")[1:3])
    np.testing.assert_allclose(log_p, PROBS[[1, 0]].sum(), rtol=1e-5)
    assert move._cache_size() == 1


def test_metropolis_hastings_on_the_suffix_keeps_the_law():
    """From exact draws of the prior, moves with the true ratio keep the prior of the length."""
    model = ppl.StateSpace(init, lambda c, s, t, a: step(Silent(c), s, t, a), T, done=ended)

    def once(key):
        k0, k1, k2, k3 = jax.random.split(key, 4)
        old = model.simulate(k0, 0.0)
        t = jax.random.randint(k3, (), 0, T)
        new, log_a = model.regenerate(k1, old, ppl.select("token")[t], 0.0)
        accept = jnp.log(jax.random.uniform(k2)) < log_a
        return jnp.where(accept, new.retval.count, old.retval.count)

    n = 20_000
    counts = np.bincount(jax.jit(jax.vmap(once))(jax.random.split(KEY, n)), minlength=T + 1)[1:]
    p = np.array([0.25 * 0.75**i for i in range(T - 1)] + [0.75 ** (T - 1)])
    z = (counts - n * p) / np.sqrt(n * p * (1 - p))
    assert np.abs(z).max() < 4


class Silent:
    """A context whose factors are dropped."""

    def __init__(self, ctx):
        self.sample, self.factor = ctx.sample, lambda name, value: None


@pytest.mark.parametrize("length", [0, 1])
def test_short_lengths(length):
    model = ppl.StateSpace(init, step, length, done=ended)
    trace = model.simulate(KEY, 0.0)
    assert trace.choices["token"].shape == (length,)
    log_p, _ = model.assess(trace.choices, 0.0)
    np.testing.assert_allclose(log_p, trace.score + trace.log_weight, rtol=1e-6)


def test_run_to_is_truncation_and_replay_is_the_state_at_every_t():
    replay = jax.jit(lambda given, t: MODEL.replay(given, t, 0.5))

    @jax.jit
    def run_to(given, t):
        out = MODEL.run_to(KEY, ppl.partial.as_given(given), (0.5,), t)
        return out, ppl.partial.total(out.log_probs) + out.log_weight

    shorter = {t: jax.jit(ppl.StateSpace(init, step, t, done=ended).assess) for t in (0, 2)}
    for tokens, n in SEQUENCES[:3]:
        given = choices(tokens)
        for t in range(T + 1):
            state = replay(given, t)
            made = min(t, n)
            assert state.count == made
            memory = np.concatenate([1.5 + np.cumsum([0] + tokens[:made]), np.zeros(T - made)])
            if t <= n:  # hot state after the end is unspecified
                np.testing.assert_allclose(state.memory.value, memory)
        for t in (0, 2):
            out, got = run_to(given, t)
            want = shorter[t](choices(jnp.array(tokens[:t], int)), 0.5)[0]
            np.testing.assert_allclose(got, want, rtol=1e-5)
            assert not out.active["token"][t:].any()
            assert (out.choices["token"][t:] == 0).all()


def test_replay_of_a_simulation_under_vmap():
    keys = jax.random.split(KEY, 20)

    def both(key):
        trace = MODEL.simulate(key, 0.5)
        return trace.retval, MODEL.replay(trace.choices, T, 0.5)

    end, again = jax.jit(jax.vmap(both))(keys)
    np.testing.assert_array_equal(end.last, again.last)
    np.testing.assert_array_equal(end.count, again.count)
    assert again.memory.value.shape == (20, T + 1)


def test_custom_replay_is_used():
    model = ppl.StateSpace(
        init, step, T, replay=lambda choices, t, start: (choices["token"][0], t, start)
    )
    assert model.replay(choices([1, 0, 0, 0, 0]), 3, 0.5) == (1, 3, 0.5)
    bound = ppl.bind(model, 0.25)
    assert bound.replay(choices([1, 0, 0, 0, 0]), 3) == (1, 3, 0.25)


def test_replay_of_missing_choices_is_an_error():
    with pytest.raises(ppl.ProgramError, match="no value for site 'token'"):
        MODEL.replay({"first": 0}, 2, 0.0)


def decaying(theta):
    """Each step takes the root of a state that theta lowers; it ends before it is negative."""

    def start(ctx, theta):
        return jnp.ones(())

    def move(ctx, state, t, theta):
        ctx.factor("f", jnp.sqrt(state) * jnp.log(state + theta - 0.3))
        return state - theta

    return ppl.StateSpace(start, move, 4, done=lambda state: state < 0.5), move, start


@pytest.mark.parametrize("closed", [False, True], ids=["argument", "closure"])
def test_no_nan_gradient_through_finished_steps(closed):
    def loss(theta):
        model, move, start = decaying(theta)
        if not closed:
            return model.assess({}, theta)[0]
        model = ppl.StateSpace(
            lambda ctx: start(ctx, theta), lambda ctx, s, t: move(ctx, s, t, theta), 4, model.done
        )
        return model.assess({})[0]

    theta = jnp.float32(0.8)  # states 1.0, 0.2 ...
    steps = lambda x: jnp.sqrt(1.0) * jnp.log(1.0 + x - 0.3)  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(loss))(theta)
    np.testing.assert_allclose(value, steps(theta), rtol=1e-5)
    np.testing.assert_allclose(gradient, jax.grad(steps)(theta), rtol=1e-5)
    many = jax.jit(jax.vmap(jax.grad(loss)))(jnp.array([0.8, 1.5, 3.0]))
    assert jnp.isfinite(many).all()


def test_as_a_call_inside_a_program():
    program = ppl.program(lambda ctx: ctx.call("story", MODEL, 0.0).count)
    log_p, count = program.assess({"story": choices([0, 2, 0, 0, 0])})
    np.testing.assert_allclose(log_p, expected([0, 2], 2), rtol=1e-5)
    assert count == 2


def test_bound_arrays_lead_the_arguments():
    a, _ = ppl.bind(MODEL, 0.5).assess(choices([0, 2, 0, 0, 0]))
    b, _ = MODEL.assess(choices([0, 2, 0, 0, 0]), 0.5)
    assert a == b
    split = ppl.bind(MODEL, 0.5).split(ppl.partial.as_given(choices([0, 2, 0, 0, 0])), ())
    assert set(split[0]) == {"first"} and set(split[1]) == {"token"}
