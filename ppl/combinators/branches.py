"""Programs that run or do not run, decided by a traced value."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray, PyTree

from ..code import closes_over_tracer
from ..errors import ProgramError
from ..generative import GenerativeFunction, Outcome, Request
from ..partial import Given, spelled
from .gate import gate


@jax.custom_batching.custom_vmap
def any_member(flag: Bool[Array, ""]) -> Bool[Array, ""]:
    """The flag; under `vmap` one for the batch: does any member raise it?"""
    return flag


@any_member.def_vmap
def _any_member_vmap(axis_size, in_batched, flag):
    return any_member(jnp.any(flag, axis=0) if in_batched[0] else flag), False


def run_gated(
    flag: Bool[Array, ""],
    program: GenerativeFunction,
    key: PRNGKeyArray | None,
    given: Given,
    args: tuple,
    request: Request,
) -> Outcome:
    """Run the program whatever `flag` is; no gradient passes back where it is false."""
    if not closes_over_tracer(program):
        program, given, args = gate(flag, (program, given, args))
        return program.run(key, given, args, request)
    dynamic, static = eqx.partition((program, key, given, args), eqx.is_array)

    def run(dynamic):
        program, key, given, args = eqx.combine(dynamic, static)
        return program.run(key, given, args, request)

    converted, closed = jax.closure_convert(run, dynamic)
    return converted(gate(flag, dynamic), *gate(flag, closed))


def run_if(
    flag: Bool[Array, ""],
    program: GenerativeFunction,
    key: PRNGKeyArray | None,
    given: Given,
    args: tuple,
    request: Request,
) -> Outcome:
    """Run the program where `flag` holds; elsewhere all is zero and the sites are inactive.

    One-sided under `jit`. Under `vmap` it is decided for the batch (does any member need it?) and
    selected for each member: a branch decided for each would copy its operands, shared parameters
    included, to every member.
    """

    def happened(operand):
        program, key, given, args = operand
        return _activated(run_gated(flag, program, key, given, args, request))

    operand = (program, key, given, args)
    if request.probe is not None and request.probe.everywhere:
        return _silenced(flag, happened(operand))
    dynamic, static = eqx.partition(operand, eqx.is_array)
    shape = jax.eval_shape(lambda d: happened(eqx.combine(d, static)), dynamic)
    out = jax.lax.cond(
        any_member(flag),
        lambda d: happened(eqx.combine(d, static)),
        lambda d: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape),
        dynamic,
    )
    return _silenced(flag, out)


def _activated(out: Outcome) -> Outcome:
    """The outcome with activity spelled out at every site."""
    active = spelled(out.active, out.log_probs)
    return eqx.tree_at(lambda o: o.active, out, active, is_leaf=lambda x: x is out.active)


def _silenced(flag, out: Outcome) -> Outcome:
    """The outcome where `flag` holds and zeros elsewhere; the reports stay."""
    parts = (out.choices, out.log_probs, out.active, out.log_weight, out.retval)
    choices, log_probs, active, log_weight, retval = jax.tree.map(
        lambda x: jnp.where(flag, x, jnp.zeros_like(x)), parts
    )
    return Outcome(choices, log_probs, active, log_weight, retval, out.reports)


def merged(outcomes: dict[str, Outcome], retval: PyTree) -> Outcome:
    """The outcome of branches that are stored side by side under their names."""

    def field(name: str) -> dict[str, Any]:
        return {branch: getattr(out, name) for branch, out in outcomes.items()}

    log_weight = sum((out.log_weight for out in outcomes.values()), jnp.zeros(()))
    reports = field("reports")
    reports = None if all(r is None for r in reports.values()) else reports
    return Outcome(
        field("choices"), field("log_probs"), field("active"), log_weight, retval, reports
    )


def check_alike(old: PyTree, new: PyTree, who: str, what: str) -> None:
    """Raise unless a new state or carry has the structure, shapes and dtypes of the old."""
    (old_leaves, old_tree), (new_leaves, new_tree) = jax.tree.flatten(old), jax.tree.flatten(new)
    types = [
        [f"{jnp.result_type(x)}{list(jnp.shape(x))}" for x in xs] for xs in (old_leaves, new_leaves)
    ]
    if old_tree != new_tree or types[0] != types[1]:
        got, returned = (
            jax.tree.unflatten(t, xs) for t, xs in zip((old_tree, new_tree), types, strict=True)
        )
        raise ProgramError(
            f"{who} must return a {what} like the one it was given: it got {got} and returned "
            f"{returned}. "
            "Build the same structure with the same shapes and dtypes"
        )
