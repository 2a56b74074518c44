"""Conditional runs of models whose steps call combinators: the retained choices are taken whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac import inference, ppl


@ppl.program
def letter(ctx, carry, x):
    value = ctx.sample("z", ppl.dist.Normal(carry, 1.0))
    return value, value


@ppl.program
def alone(ctx, x):
    return ctx.sample("z", ppl.dist.Normal(x, 1.0))


def scanned(ctx, state, t):
    last, values = ctx.call("word", ppl.scan(letter, length=3), state)
    ctx.factor("high", 0.3 * jnp.sum(values))
    return last


def mapped(ctx, state, t):
    values = ctx.call("word", ppl.vmap(alone), jnp.full(3, state))
    ctx.factor("high", 0.3 * jnp.sum(values))
    return jnp.mean(values)


@pytest.mark.parametrize("step", [scanned, mapped])
def test_the_retained_particle_keeps_what_its_calls_chose(step):
    target = ppl.Target(ppl.StateSpace(lambda ctx: jnp.zeros(()), step, 3))
    retained = {"word": {"z": jnp.arange(9.0).reshape(3, 3) / 10}}
    smc = inference.SMC(8)
    run = smc.run_conditional(jax.random.key(0), target, retained)
    kept = np.asarray(run.choices["word"]["z"])
    at = int(run.position)
    assert run.status
    np.testing.assert_array_equal(kept[at], retained["word"]["z"])
    others = np.delete(kept, at, axis=0)[:, -1]
    assert not (others == np.asarray(retained["word"]["z"])[-1]).all(axis=-1).any()
