"""Involutive moves: a Jacobian, a swap, a change of dimension."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac import ppl
from feynkac.inference import mcmc
from feynkac.ppl import dist
from feynkac.ppl.laws.geweke import geweke

KEY = jax.random.key(59)


@ppl.program
def scaled(ctx):
    """Two positive sites, one of which depends on the other, and a coin."""
    k = ctx.sample("k", dist.Bernoulli(probs=0.3))
    x = ctx.sample("x", dist.Gamma(jnp.where(k == 1, 3.0, 2.0), 1.5))
    ctx.sample("y", dist.Normal(x, 0.5))


@ppl.program
def stretch(ctx, choices):
    ctx.sample("log_scale", dist.Normal(0.2, 0.5))
    ctx.sample("flip", dist.Bernoulli(probs=jnp.where(choices["k"] == 1, 0.7, 0.2)))


def stretched(choices, auxiliary):
    """x times a factor (one dimension, Jacobian exp(log_scale)); the coin trades places."""
    scale = auxiliary["log_scale"]
    new = {**choices, "x": choices["x"] * jnp.exp(scale), "k": auxiliary["flip"]}
    return new, {"log_scale": -scale, "flip": choices["k"]}


def swapped(choices, auxiliary):
    x = choices["x"] + auxiliary["log_scale"]
    return {**choices, "x": x}, {**auxiliary, "log_scale": -auxiliary["log_scale"]}


@pytest.mark.slow
def test_a_jacobian():
    kernel = mcmc.Sequence(
        [mcmc.Involutive(stretch, stretched), mcmc.Involutive(stretch, swapped, True)]
    )
    geweke(KEY, kernel, scaled, ppl.select("y"), runs=2**13).check()


@ppl.program
def two(ctx):
    return ctx.sample("a", dist.Normal(0.0, 1.0)) + ctx.sample("b", dist.Normal(0.5, 0.7))


@ppl.program
def one(ctx):
    return ctx.sample("c", dist.Normal(1.0, 1.3))


@ppl.program
def jumping(ctx):
    which = ctx.sample("which", dist.Bernoulli(probs=0.4))
    value = ctx.call("part", ppl.cond(two, one), which == 1)
    ctx.sample("y", dist.Normal(value, 1.0))


@ppl.program
def split(ctx, choices):
    """The second number that a split needs; where there are two already it is not used."""
    ctx.call("half", ppl.mask(half), choices["which"] == 0)


@ppl.program
def half(ctx):
    ctx.sample("u", dist.Normal(0.0, 0.8))


def split_or_merge(choices, auxiliary):
    """c, u <-> a = c + u, b = c - u (Green 1995, section 3.3): the Jacobian is 2 or 1/2."""
    joint, parts = choices["part"]["false"]["c"], choices["part"]["true"]
    merge, u = choices["which"] == 1, auxiliary["half"]["u"]
    zero = jnp.zeros_like(u)
    new = {
        **choices,
        "which": 1 - choices["which"],
        "part": {
            "true": {
                "a": jnp.where(merge, zero, joint + u),
                "b": jnp.where(merge, zero, joint - u),
            },
            "false": {"c": jnp.where(merge, (parts["a"] + parts["b"]) / 2, zero)},
        },
    }
    return new, {"half": {"u": jnp.where(merge, (parts["a"] - parts["b"]) / 2, zero)}}


@pytest.mark.slow
def test_a_change_of_dimension():
    """Two numbers become one and back; without the auxiliary number dimensions do not match."""
    kernel = mcmc.Involutive(split, split_or_merge)
    result = geweke(KEY, kernel, jumping, ppl.select("y"), runs=2**13)
    result.check()
    moved = jax.jit(
        jax.vmap(lambda k: kernel(k, ppl.Target(jumping), jumping.simulate(k)).choices["which"])
    )(jax.random.split(KEY, 2**10))
    start = jax.vmap(lambda k: jumping.simulate(k).choices["which"])(jax.random.split(KEY, 2**10))
    assert np.mean(np.asarray(moved) != np.asarray(start)) > 0.2


def test_what_is_no_involution_is_rejected():
    def wrong(choices, auxiliary):
        return {**choices, "x": choices["x"] * jnp.exp(auxiliary["log_scale"])}, auxiliary

    def fixed(choices, auxiliary):
        return {**choices, "y": choices["y"] + auxiliary["log_scale"]}, {
            **auxiliary,
            "log_scale": -auxiliary["log_scale"],
        }

    target = ppl.Target(scaled, (), {"y": jnp.ones(())})
    trace, _ = scaled.generate(KEY, target.constraints)
    for involution in (wrong, fixed):
        new = mcmc.Involutive(stretch, involution)(KEY, target, trace)
        assert new.choices["x"] == trace.choices["x"] and new.choices["y"] == 1


def test_a_map_of_another_structure():
    kernel = mcmc.Involutive(stretch, lambda choices, auxiliary: (choices, {}))
    with pytest.raises(ppl.ProgramError, match="the involution must return"):
        jax.eval_shape(lambda k: kernel(k, ppl.Target(scaled), scaled.simulate(k)), KEY)
