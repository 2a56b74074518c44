"""How well a given future fits each of several states: the weights of backward sampling.

For a state reached by a past x and a future f, log gamma(x, f) - log gamma(x), the model being
run on the future from each state (Lindsten, Jordan and Schon 2014, equation 3 and section 5, where
for models that are not Markov the future is truncated; here it is followed until the states agree,
so that nothing is cut off).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ...ppl.generative import Request, likelihood
from ...ppl.partial import Given, overlay, spelled, total
from ..driver import Driver
from ..mapping import Vmap
from ..population import get_row


class Followed(eqx.Module):
    """One state taken over one step of a given future."""

    state: PyTree
    log_density: Float[Array, "..."]
    active: Any


def follow(driver: Driver, state: PyTree, t: Int[Array, ""], chosen: Given) -> Followed:
    """Step t from `state` with all its choices given: the new state and what gamma gains."""
    target = driver.target
    fixed = get_row(driver.fk.split(target.constraints)[1], t)
    given = overlay(fixed, chosen)
    out = driver.fk.model.advance(None, given, state, t, target.args, Request(complete=True))
    score = total(out.log_probs)
    log_density = target.raised(score + out.log_weight, likelihood(out, fixed))
    log_density = jnp.where(jnp.isneginf(score), -jnp.inf, log_density)
    return Followed(out.retval, log_density, spelled(out.active, out.log_probs))


def log_future_ratios(
    driver: Driver,
    states: PyTree,
    reference: Int[Array, ""],
    wanted: Bool[Array, "n"],
    future: Given,
    t: Int[Array, ""],
    stop: Int[Array, ""] | int,
    whole: bool,
) -> Float[Array, "n"]:
    """Log density of the future after each of `states`, less that after `states[reference]`, nats.

    `future` holds the choices [length, ...] of steps t to stop - 1, made after the reference; it
    has density zero where other choices would happen. One step is run if the new state is a
    function of the step's own choices, and at most all (`whole`: then also what `at_length` says).
    What is not `wanted` is not followed: its entry means nothing.
    """
    model = driver.fk.model
    n = wanted.shape[0]
    each = jnp.arange(n)
    mapping = driver.mapping if n == driver.n_particles else Vmap()

    def agree(states):
        """Has each state the same future as the reference, whatever it is?"""
        one = jax.tree.map(lambda x: x[reference], states)

        def same(state):
            pairs = zip(jax.tree.leaves(state), jax.tree.leaves(one), strict=True)
            equal = [jnp.all(a == b) for a, b in pairs]
            over = model.finished(state) & model.finished(one)
            return over | jnp.all(jnp.stack([jnp.ones((), bool), *equal]))

        return jax.vmap(same)(states)

    def going(carry):
        s, _, _, open_ = carry
        return (s < stop) & jnp.any(open_)

    def go(carry):
        s, states, ratio, open_ = carry
        chosen = get_row(future, s)
        out = mapping.over(lambda i, x: follow(driver, x, s, chosen), each, states)
        alike = [
            jnp.all((a == a[reference][None]).reshape(n, -1), axis=1)
            for a in jax.tree.leaves(out.active)
        ]
        possible = jnp.all(jnp.stack([~jnp.isneginf(out.log_density), *alike]), axis=0)
        gain = out.log_density - out.log_density[reference]
        ratio = jnp.where(open_, jnp.where(possible, ratio + gain, -jnp.inf), ratio)
        open_ = open_ & ~jnp.isneginf(ratio) & ~agree(out.state)
        return s + 1, out.state, ratio, open_

    start = jnp.zeros(n, jnp.result_type(float))
    t = jnp.asarray(t, jnp.int32)
    carry = (t, states, start, wanted & ~agree(states))
    _, states, ratio, open_ = jax.lax.while_loop(going, go, carry)
    if whole:
        end = jax.vmap(driver.fk.end)(states)
        impossible = jnp.isneginf(end)
        ended = jnp.where(impossible, -jnp.inf, ratio + (end - end[reference]))
        ratio = jnp.where(open_, ended, ratio)
    return ratio
