"""The density of given choices under the target and under each of several proposals.

One pass over the model: at every move the model says the density of what it did, and each
proposal that of the sites it names; the model's own draws have the same density under all.
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ...ppl.errors import ProgramError
from ...ppl.generative import Outcome, Request, given_masks, likelihood
from ...ppl.partial import Choices, Given, as_given, prune, total, walk
from ...ppl.proposal import Proposal
from ...ppl.target import Target

_SCORE = Request(complete=True)
_PROPOSED = Request(complete=True, weightless=True)


class Stacked(eqx.Module):
    """As many proposals as the arrays have rows: proposal k is `proposal.bind(row k)`.

    `Stacked(proposal, *arrays)`: every leaf has a leading axis of components. The program of the
    proposal gets one row, before the model's own args: `kernel(ctx, location, *args)`.
    """

    proposal: Proposal
    arrays: tuple

    def __init__(self, proposal: Proposal, *arrays: PyTree):
        sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(arrays)}
        if len(sizes) != 1 or () in sizes:
            raise ValueError(
                "Stacked needs arrays that all have one leading axis of components, got leading "
                f"axes {sorted(sizes)}"
            )
        self.proposal, self.arrays = proposal, arrays

    @property
    def components(self) -> int:
        """How many proposals these are."""
        return jax.tree.leaves(self.arrays)[0].shape[0]

    def over(self, fn: Any, *rest: PyTree) -> Any:
        """`fn(proposal, *rest)` for every component; results and `rest` have a leading axis."""
        return jax.vmap(lambda row, *xs: fn(self.proposal.bind(*row), *xs))(self.arrays, *rest)


def log_densities(
    target: Target, proposals: Sequence[Proposal | Stacked | None], choices: Choices
) -> tuple[Float[Array, "moves"], Float[Array, "moves components"]]:
    """Log gamma and each component's log density of the choices of one particle, up to each move.

    Row 0 is after init, row t + 1 after step t, so that the last row is for the whole; gamma's
    includes `at_length`. None is the model itself as proposal. Component densities are of the free
    sites: those a proposal names by it, the rest by the model. What did not happen counts as 1.
    """
    model, args = target.state_space(), target.args
    fixed_first, fixed_later = model.split(as_given(target.constraints), args)
    first, later = model.split(target.joined(choices), args)
    out = model.start(None, first, args, _SCORE)
    start = _move(target, proposals, "init", out, first, fixed_first, model.bound + args, None)

    def step(state, inputs):
        t, given, fixed = inputs
        move = model.advance(None, given, state, t, args, _SCORE)
        context = (state, t, *model.bound, *args)
        active = None if model.done is None else ~model.finished(state)
        return move.retval, _move(target, proposals, "step", move, given, fixed, context, active)

    steps = jnp.arange(model.length, dtype=jnp.int32)
    state, rest = jax.lax.scan(step, out.retval, (steps, later, fixed_later), length=model.length)
    log_gamma, log_q = (
        jnp.cumsum(jnp.concatenate([a[None], b]), axis=0) for a, b in zip(start, rest, strict=True)
    )
    return log_gamma.at[-1].add(model.at_length.log_weight(model.finished(state))), log_q


def _move(
    target: Target,
    proposals: Sequence[Proposal | Stacked | None],
    part: str,
    out: Outcome,
    given: Given,
    fixed: Given,
    context: tuple,
    active: Any,
) -> tuple[Float[Array, ""], Float[Array, "components"]]:
    """Log densities of one move."""
    free = walk(_not, out.log_probs, given_masks(out.log_probs, fixed))
    log_gamma = target.raised(total(out.log_probs) + out.log_weight, likelihood(out, fixed))

    def one(proposal: Proposal | None) -> Float[Array, ""]:
        program = None if proposal is None else getattr(proposal, part)
        if proposal is None or program is None:
            return total(out.log_probs, free)
        with_bound = _spliced(context, proposal.bound, part)
        names = jax.eval_shape(
            lambda k: program.run(k, {}, with_bound), jax.random.key(0)
        ).log_probs
        _check(names, out.log_probs, fixed)
        chosen = prune(walk(lambda _, lp, node: node, names, given))
        draft = program.run(None, chosen, with_bound, _PROPOSED)
        happened = walk(_happened, draft.log_probs, out.active)
        density = total(draft.log_probs, happened)
        if active is not None:
            density = jnp.where(active, density, jnp.zeros_like(density))
        left = walk(lambda _, lp, f, n: f if n is None else False, out.log_probs, free, names)
        return density + total(out.log_probs, left)

    rows = [p.over(one) if isinstance(p, Stacked) else jnp.reshape(one(p), (1,)) for p in proposals]
    return log_gamma, jnp.concatenate(rows)


def _spliced(context: tuple, bound: tuple, part: str) -> tuple:
    """A proposal's own bound arguments come after (state, t) and before the model's."""
    return (*context[:2], *bound, *context[2:]) if part == "step" else (*bound, *context)


def _check(names: Any, log_probs: Any, fixed: Given) -> None:
    unknown = sorted(set(names) - set(log_probs))
    if unknown:
        raise ProgramError(
            f"the proposal draws {unknown}, which the model does not sample there; it has "
            f"{sorted(log_probs)}"
        )
    clash = sorted(set(names) & set(fixed))
    if clash:
        raise ProgramError(
            f"the proposal draws {clash}, which the target's constraints fix: leave them out of "
            "the proposal"
        )


def _not(_, log_prob, mask):
    return (not mask) if isinstance(mask, bool) else ~mask


def _happened(_, log_prob, active):
    return True if active is None else active
