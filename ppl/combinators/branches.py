"""Programs that run or do not run, decided by a traced value."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray, PyTree

from ..generative import GenerativeFunction, Outcome, Request
from ..partial import Given, spelled


def gate(flag: Bool[Array, ""], tree: PyTree) -> PyTree:
    """The tree unchanged in value; where `flag` is false no gradient, not even NaN, passes back through it."""

    def one(x):
        if not eqx.is_inexact_array(x):
            return x
        return jnp.where(flag, x, jax.lax.stop_gradient(x))

    return jax.tree.map(one, tree)


def run_if(
    flag: Bool[Array, ""],
    program: GenerativeFunction,
    key: PRNGKeyArray | None,
    given: Given,
    args: tuple,
    request: Request,
) -> Outcome:
    """Run the program where `flag` holds; elsewhere choices are zeros, log densities 0 and sites inactive.

    One-sided under `jit`; under `vmap` both sides are computed and selected.
    """
    program, given, args = gate(flag, (program, given, args))

    def happened(operand):
        program, key, given, args = operand
        return _activated(program.run(key, given, args, request))

    operand = (program, key, given, args)
    if request.support:
        return _silenced(flag, happened(operand))
    dynamic, static = eqx.partition(operand, eqx.is_array)
    shape = jax.eval_shape(lambda d: happened(eqx.combine(d, static)), dynamic)
    return jax.lax.cond(
        flag,
        lambda d: happened(eqx.combine(d, static)),
        lambda d: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape),
        dynamic,
    )


def _activated(out: Outcome) -> Outcome:
    """The outcome with activity spelled out at every site."""
    active = spelled(out.active, out.log_probs)
    return eqx.tree_at(lambda o: o.active, out, active, is_leaf=lambda x: x is out.active)


def _silenced(flag, out: Outcome) -> Outcome:
    """The outcome where `flag` holds and zeros elsewhere; the support stays."""
    zeros = jax.tree.map(lambda x: jnp.where(flag, x, jnp.zeros_like(x)), eqx.tree_at(lambda o: o.support, out, None))
    return eqx.tree_at(lambda o: o.support, zeros, out.support, is_leaf=lambda x: x is None)


def merged(outcomes: dict[str, Outcome], retval: PyTree) -> Outcome:
    """The outcome of branches that are stored side by side under their names."""

    def field(name: str) -> dict[str, Any]:
        return {branch: getattr(out, name) for branch, out in outcomes.items()}

    log_weight = sum((out.log_weight for out in outcomes.values()), jnp.zeros(()))
    supports = field("support")
    support = None if all(s is None for s in supports.values()) else supports
    return Outcome(field("choices"), field("log_probs"), field("active"), log_weight, retval, support)
