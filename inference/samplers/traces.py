"""Traces of a whole target: drawn, rebuilt from choices, and weighed."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ...ppl.generative import Outcome, Request, given_masks, likelihood
from ...ppl.hot import drop_hot
from ...ppl.partial import Choices, as_given, spelled, total, walk
from ...ppl.state_space import StateSpace
from ...ppl.target import Target
from ...ppl.trace import Trace


def draw(key: PRNGKeyArray, target: Target) -> tuple[Trace, Float[Array, ""]]:
    """Free choices from their distributions, and the log weight of this draw, nats."""
    given = as_given(target.constraints)
    out = target.model.run(key, given, target.args)
    trace = _traced(out)
    return trace, target.raised(out.weigh(given), likelihood(out, given))


def retrace(target: Target, choices: Choices, key: PRNGKeyArray | None = None) -> Trace:
    """The trace of the target at these choices; a key where a density is estimated."""
    request = Request(complete=True)
    return _traced(target.model.run(key, target.joined(choices), target.args, request))


def log_likelihood(target: Target, trace: Trace) -> Float[Array, ""]:
    """Log likelihood of a trace to the target's exponent, nats: -inf stays, NaN is passed on."""
    value = likelihood(trace, as_given(target.constraints))
    value = jnp.where(jnp.isneginf(trace.score), -jnp.inf, value)
    value = jnp.where(jnp.isnan(trace.score), jnp.nan, value)
    if target.exponent is None:
        return value
    scaled = value * target.exponent.astype(value.dtype)
    return jnp.where(jnp.isneginf(value), -jnp.inf, scaled)


def log_density(target: Target, trace: Trace) -> Float[Array, ""]:
    """Log gamma at a trace of the target, nats."""
    return target.raised(
        trace.score + trace.log_weight, likelihood(trace, as_given(target.constraints))
    )


def newly_fixed(trace: Trace, old: Target, new: Target) -> Float[Array, ""]:
    """Log density of what the old target draws and the new one fixes, nats."""
    before = given_masks(trace.log_probs, as_given(old.constraints))
    after = given_masks(trace.log_probs, as_given(new.constraints))
    return total(trace.log_probs, walk(_and_not, trace.log_probs, after, before))


def length(target: Target, trace: Trace) -> Int[Array, ""]:
    """How many steps a trace took; 0 of a program."""
    model = target.model
    if not isinstance(model, StateSpace) or model.length == 0:
        return jnp.int32(0)
    later = model.split(as_given(trace.choices), target.args)[1]
    active = {name: trace.active[name] for name in later}
    rows = [x.reshape(x.shape[0], -1).any(-1) for x in jax.tree.leaves(active)]
    return jnp.sum(jnp.any(jnp.stack(rows), 0), dtype=jnp.int32) if rows else jnp.int32(0)


def _traced(out: Outcome) -> Trace:
    return Trace(
        choices=out.choices,
        score=total(out.log_probs),
        log_weight=out.log_weight,
        retval=drop_hot(out.retval),
        log_probs=out.log_probs,
        active=spelled(out.active, out.log_probs),
    )


def _and_not(_, log_prob, yes, no):
    if yes is False or no is True:
        return False
    if no is False:
        return yes
    return ~no if yes is True else yes & ~no
