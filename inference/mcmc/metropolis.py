"""Metropolis-Hastings with any program as proposal.

Metropolis et al. 1953, Hastings 1970; over sites that come and go Green 1995, "Reversible jump
Markov chain Monte Carlo", with the dimensions matched by draws from the model (as in `update`).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from ...ppl.errors import ProgramError
from ...ppl.generative import GenerativeFunction, Request, given_masks, kept, likelihood
from ...ppl.partial import Partial, as_given, overlay, prune, spelled, total, walk
from ...ppl.program import as_program
from .kernel import Kernel
from .transition import log_uniform, settle, traced, written

# A factor in a proposal would be an unnormalised density.
_NORMALIZED = Request(weightless=True)


class Metropolis(Kernel):
    """`Metropolis(proposal)`: new values from `proposal(ctx, choices, *args)`, then accept or not.

    The proposal samples the sites that it names, given the current choices (constrained ones
    included; zeros where something did not happen) and the target's args; all others keep their
    values. A random walk is one line: `ctx.sample("x", dist.Normal(choices["x"], 0.5))`. The
    reverse density is that of the old values given the new choices.

    Sites that happen only after the move and that the proposal does not name are drawn from the
    model, and those that no longer happen are dropped, both with their densities in the ratio.
    Instances of one site (steps, vmap) are proposed together by one draw or, if some may not
    happen (a model with `done`, a branch, a filter that is under way), each by its own:
    `Metropolis(ppl.vmap(proposal, ...))`. A move whose reverse would propose other sites than it
    did itself is rejected.

    Errors: the proposal names no site, an unknown or a constrained one, or has an observe or
    factor.
    """

    proposal: GenerativeFunction

    def __init__(self, proposal: Any):
        self.proposal = as_program(proposal)

    def move(self, key, target, chain, steps=None):
        """See `Kernel.move`."""
        key_draft, key_model, key_reverse, key_accept = jax.random.split(key, 4)
        old, model, fixed = written(chain.trace), target.state_space(), as_given(target.constraints)
        draft = self.proposal.run(key_draft, {}, (old.choices, *target.args), _NORMALIZED)
        constrained = given_masks(old.log_probs, fixed)
        _check(draft.log_probs, old.log_probs, constrained)

        given = overlay(fixed, overlay(_as_given(draft, old.log_probs), kept(old)))
        out = model.run_to(key_model, given, target.args, steps)
        new = traced(out)
        _check_whole(draft.log_probs, out, constrained)

        back = walk(_value, draft.log_probs, old.log_probs, old.choices, old.active, constrained)
        reverse = self.proposal.run(key_reverse, prune(back), (new.choices, *target.args))
        there, here = (spelled(o.active, o.log_probs) for o in (draft, reverse))
        counted, counted_back, same = _matched(
            draft.log_probs, there, here, new.active, old.active, constrained
        )
        forward = total(draft.log_probs, counted)
        backward = total(reverse.log_probs, counted_back)

        # What the old trace has in reverse: kept, constrained or proposed; the rest is drawn.
        still = walk(_or, old.log_probs, new.active, constrained, here)
        log_w = out.weigh(given) - total(old.log_probs, still) - old.log_weight
        log_w = target.raised(log_w, likelihood(new, fixed) - likelihood(old, fixed))
        log_ratio = jnp.where(jnp.isneginf(forward), -jnp.inf, log_w + backward - forward)
        accept = same & (log_uniform(key_accept, log_ratio) < log_ratio)
        return settle(accept, chain, new, out.retval)


def _check(names: Any, log_probs: Any, constrained: Any) -> None:
    """Raise unless the proposal names free sites of the model."""
    found: list[str] = []

    def leaf(path, _, model, fixed):
        name = "/".join(path)
        if model is None or isinstance(model, dict):
            raise ProgramError(
                f"the proposal of Metropolis draws {name!r}, which is no site of the model "
                f"(it has {sorted(log_probs)}): name the sites as the model does"
            )
        if fixed is True:
            raise ProgramError(
                f"the proposal of Metropolis draws {name!r}, which the target's constraints fix: "
                "leave it out of the proposal"
            )
        found.append(name)

    walk(leaf, names, log_probs, constrained)
    if not found:
        raise ProgramError(
            "the proposal of Metropolis draws no site: sample at least one site of the model in "
            f"it ({sorted(log_probs)})"
        )


def _check_whole(names: Any, out: Any, constrained: Any) -> None:
    """Raise if one draw is for instances of which some may not happen or are constrained."""

    def leaf(path, log_prob, model, active, fixed):
        if jnp.shape(log_prob) != jnp.shape(model) and not (active is None and fixed is False):
            raise ProgramError(
                f"the proposal of Metropolis draws all instances {jnp.shape(model)} of "
                f"{'/'.join(path)!r} at once, but some of them may not happen (the model is done "
                "early, a branch, or a filter is under way) or are constrained. Instead propose "
                "each by its own draw, Metropolis(ppl.vmap(proposal, in_axes=...)), or use "
                "RandomWalk, HMC, Gibbs or MH(selection)"
            )

    walk(leaf, names, out.log_probs, out.active, constrained)


def _as_given(draft: Any, log_probs: Any) -> Any:
    """The proposed values, where the proposal drew them."""

    def leaf(_, log_prob, model, value, active):
        mask = active if active is not None and jnp.shape(log_prob) == jnp.shape(model) else None
        if active is not None and mask is None:
            mask = jnp.broadcast_to(active, jnp.shape(model))
        return Partial(value, mask)

    return walk(leaf, draft.log_probs, log_probs, draft.choices, draft.active)


def _value(_, log_prob, model, value, active, fixed):
    """The old value for the reverse proposal; what did not happen it draws as a dummy."""
    if jnp.shape(log_prob) != jnp.shape(model):
        return Partial(value)
    return Partial(value, active if fixed is False else active & ~fixed)


def _matched(
    names: Any, there: Any, here: Any, new: Any, old: Any, constrained: Any
) -> tuple[Any, Any, Bool[Array, ""]]:
    """Whose densities count forward and in reverse; and are the same sites proposed both ways?"""
    same = [jnp.ones((), bool)]

    def leaf(_, log_prob, there, here, new, old, fixed):
        if jnp.shape(log_prob) != jnp.shape(new):  # one draw for instances that all happen
            same.append(there == here)
            return there, here
        free = jnp.ones_like(new) if fixed is False else ~fixed
        same.append(jnp.all((there == here) | ~(new & old & free)))
        return there & new & free, here & old & free

    pairs = walk(leaf, names, there, here, new, old, constrained)
    first, second = (
        jax.tree.map(lambda p, i=i: p[i], pairs, is_leaf=lambda x: isinstance(x, tuple))
        for i in (0, 1)
    )
    return first, second, jnp.all(jnp.stack(same))


def _or(_, log_prob, new, fixed, proposed):
    if fixed is True:
        return True
    keep = new if fixed is False else new | fixed
    return keep if proposed is None else keep | jnp.broadcast_to(proposed, jnp.shape(log_prob))
