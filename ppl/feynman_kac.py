"""The Feynman-Kac view of a target: transition kernels and log potentials for one particle.

With the model's own draws this is the bootstrap filter, with a `Proposal` the guided filter, with
a `Twist` the auxiliary or twisted filter (Chopin and Papaspiliopoulos 2020, chapter 10). A
potential is the density of what the model was made to take (constraints, observations, factors,
proposed sites) over the density of what was proposed.
"""

from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from .errors import ProgramError
from .generative import GenerativeFunction, Outcome, likelihood
from .partial import Choices, Given, Partial, as_given, overlay, prune, spelled, total, walk
from .proposal import Proposal
from .state_space import StateSpace
from .target import Target
from .twist import AbstractTwist


class Moved(eqx.Module):
    """One particle after a move: its state, the move's choices and log potential (nats).

    `log_probs`, `active` and `log_weight` are those of a trace of the move.
    """

    state: PyTree
    choices: Choices
    log_potential: Float[Array, "..."]
    log_probs: Any
    active: Any
    log_weight: Float[Array, "..."]


class Retained(eqx.Module):
    """Choices that one particle of a conditional run is made to have, at its moves.

    `log_probs`, if given, are the log densities that they were made with: where a density is only
    estimated, the particle has the estimate that it had.
    """

    choices: Given
    here: Bool[Array, ""]
    log_probs: Any = None

    def given(self) -> Given:
        """The choices as values given only for the retained particle."""

        def leaf(p):
            return Partial(p.value, self.here if p.mask is None else p.mask & self.here)

        return jax.tree.map(leaf, self.choices, is_leaf=lambda x: isinstance(x, Partial))

    def recalled(self, out: Outcome) -> Outcome:
        """The outcome with the retained particle's log densities as they were."""
        if self.log_probs is None:
            return out

        def leaf(_, log_prob, known):
            return log_prob if known is None else jnp.where(self.here, known, log_prob)

        return replace(out, log_probs=walk(leaf, out.log_probs, self.log_probs))


class FeynmanKac(eqx.Module):
    """Transition kernel and log potential of each move of one particle."""

    target: Target
    proposal: Proposal | None = None
    twist: AbstractTwist | None = None

    @property
    def model(self) -> StateSpace:
        """The target's model as a StateSpace."""
        return self.target.state_space()

    def split(self, choices: Choices) -> tuple[Given, Given]:
        """Choices as given values of init and, with a leading time axis, of the steps."""
        return self.model.split(as_given(choices), self.target.args)

    def init(self, key: PRNGKeyArray, given: Given, retained: Retained | None = None) -> Moved:
        """The first move: runs the model's init, `given` the target's constraints on it."""
        args = (*self._bound(), *self.model.bound, *self.target.args)

        def model(key, given):
            return self.model.start(key, given, self.target.args)

        proposal = self.proposal and self.proposal.init
        return _move(self.target, model, proposal, key, given, args, retained)

    def step(
        self,
        key: PRNGKeyArray,
        given: Given,
        state: PyTree,
        t: Int[Array, ""],
        retained: Retained | None = None,
    ) -> Moved:
        """The move at step t; a particle that is done stays, with log potential 0."""

        def model(key, given):
            return self.model.advance(key, given, state, t, self.target.args)

        args = (state, t, *self._bound(), *self.model.bound, *self.target.args)
        proposal = self.proposal and self.proposal.step
        moved = _move(self.target, model, proposal, key, given, args, retained)
        if self.model.done is None:
            return moved
        active = ~self.model.finished(state)
        log_potential = jnp.where(active, moved.log_potential, jnp.zeros_like(moved.log_potential))
        return eqx.tree_at(lambda m: m.log_potential, moved, log_potential)

    def end(self, state: PyTree) -> Float[Array, ""]:
        """Log potential after the last step: what `at_length` says of an unfinished particle."""
        return self.model.at_length.log_weight(self.model.finished(state))

    def log_psi(self, key: PRNGKeyArray, state: PyTree, t: Int[Array, ""]) -> Float[Array, ""]:
        """The twist of a state before step t: 0 without one, of a finished state, and at the end.

        The key is for a twist that is estimated.
        """
        if self.twist is None:
            return jnp.zeros(())
        value = self.twist.log_psi_of(key, self, state, t)
        over = self.model.finished(state) | (t >= self.model.length)
        return jnp.where(over, jnp.zeros_like(value), value)

    def _bound(self) -> tuple:
        return () if self.proposal is None else self.proposal.bound


def _move(
    target: Target,
    model: Any,
    proposal: GenerativeFunction | None,
    key: PRNGKeyArray,
    given: Given,
    args: tuple,
    retained: Retained | None,
) -> Moved:
    kept = {} if retained is None else retained.given()
    if proposal is None:
        out: Outcome = model(key, overlay(given, kept))
        out = out if retained is None else retained.recalled(out)
        return _moved(out, target.raised(out.weigh(given), likelihood(out, given)))
    key_propose, key_model = jax.random.split(key)
    names = jax.eval_shape(lambda k: proposal.run(k, {}, args), key).log_probs
    draft = proposal.run(key_propose, _restrict(kept, names), args)
    clash = sorted(set(names) & set(given))
    if clash:
        raise ProgramError(
            f"the proposal draws {clash}, which the target's constraints fix: leave them out of "
            "the proposal"
        )
    proposed = overlay(as_given(draft.choices), given)
    out = model(key_model, overlay(proposed, kept))
    out = out if retained is None else retained.recalled(out)
    # What the model did not use (a branch it did not take) was not proposed. A proposal that could
    # draw nothing (an empty distribution) leaves the particle without a successor.
    density = total(draft.log_probs, walk(_used, draft.log_probs, out.active))
    log_weight = target.raised(out.weigh(proposed), likelihood(out, given))
    log_potential = jnp.where(
        jnp.isneginf(density), -jnp.inf, log_weight + draft.log_weight - density
    )
    return _moved(out, log_potential)


def _moved(out: Outcome, log_potential: Float[Array, ""]) -> Moved:
    active = spelled(out.active, out.log_probs)
    return Moved(out.retval, out.choices, log_potential, out.log_probs, active, out.log_weight)


def _used(_, log_prob: Array, active: Any) -> Any:
    """Which of the proposed instances happened in the model."""
    if active is None or isinstance(active, dict) or jnp.shape(active) != jnp.shape(log_prob):
        return True
    return active


def _restrict(given: Given, names: Any) -> Given:
    """The part of `given` at the sites that `names` has."""
    return prune(walk(lambda _, lp, node: node, names, given))
