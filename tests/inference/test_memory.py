"""Memory does not grow with hot state x time; without choices not with time x particles."""

import jax
import jax.numpy as jnp

from feynkac import inference, ppl
from feynkac.inference.smc import _run
from feynkac.ppl import dist

N, HOT = 8, 1 << 14  # 64 KB a particle


def init(ctx):
    return {"x": jnp.zeros(()), "hot": ppl.Hot(jnp.zeros(HOT))}


def step(ctx, state, t):
    x = ctx.sample("x", dist.Normal(state["x"], 1.0))
    ctx.observe("y", dist.Normal(x, 1.0), 0.0)
    hot = state["hot"].value
    hot = jax.lax.dynamic_update_index_in_dim(hot, x, t, 0)
    return {"x": x + 0.0 * hot[0], "hot": ppl.Hot(hot)}


def sizes(length, record):
    smc = inference.SMC(N, record=record)
    target = ppl.Target(ppl.StateSpace(init, step, length))
    m = _run.lower(smc, jax.random.key(0), target, None).compile().memory_analysis()
    return m.temp_size_in_bytes, m.output_size_in_bytes


def test_memory_does_not_grow_with_hot_state_and_time():
    hot = 4 * N * HOT
    (temp, out), (temp4, out4) = (sizes(t, inference.Record.choices()) for t in (16, 64))
    assert temp >= hot  # the hot state is there
    small = 64 * N * 4 * 12  # a dozen small arrays of the longer run
    assert temp4 - temp < small < hot
    assert out4 - out < small
    assert out4 < hot / 4  # and it is not returned


def test_the_last_population_is_smaller_than_the_choices():
    _, last = sizes(64, inference.Record.last())
    _, choices = sizes(64, inference.Record.choices())
    assert choices - last >= 64 * N * 4
