"""The generative-function interface: six operations, all from one run with some sites given.

A generative function with args a has an unnormalised density over choices x: the product of its
sites' densities p(x; a), `score`, times exp(log_weight), the product of its `observe` and
`factor` terms. A run with some sites given draws the rest from p one after the other; every
operation is such a run and a difference of log densities. Terminology: Cusumano-Towner et al.
2019, "Gen", section 3.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .partial import Choices, Given, Partial, as_given, overlay, prune, total, walk
from .probe import Probe
from .selection import Selection
from .trace import Trace


class Request(eqx.Module):
    """How to run: static, handed down to every callee.

    `complete`: a site without a value is an error. `weightless`: an observe or factor is an error.
    `where`: the calls we are in. `probe`: sees each site and reports on it. `relaxed`: real values
    may be given for discrete sites (straight-through gradients).
    """

    complete: bool = eqx.field(static=True, default=False)
    where: tuple[str, ...] = eqx.field(static=True, default=())
    weightless: bool = eqx.field(static=True, default=False)
    probe: Probe | None = None
    relaxed: bool = eqx.field(static=True, default=False)

    def inside(self, name: str) -> "Request":
        """The request for a callee."""
        where = (*self.where, name)
        return Request(self.complete, where, self.weightless, self.probe, self.relaxed)


PLAIN = Request()
"""The request of an ordinary run."""


class Outcome(eqx.Module):
    """What a run produced: the fields of `Trace`, and per site the report of its `Probe`."""

    choices: Choices
    log_probs: Any
    active: Any
    log_weight: Float[Array, "..."]
    retval: PyTree
    reports: Any = None

    def weigh(self, given: Given) -> Float[Array, ""]:
        """Log density of the given sites, plus observes and factors, nats.

        -inf if some site was drawn from an empty distribution; NaN if a density is unknown.
        """
        score = total(self.log_probs)
        log_weight = jnp.where(jnp.isneginf(score), -jnp.inf, likelihood(self, given))
        return jnp.where(jnp.isnan(score), jnp.nan, log_weight)

    def trace(self) -> Trace:
        """The trace of this run."""
        return Trace(
            self.choices,
            total(self.log_probs),
            self.log_weight,
            self.retval,
            self.log_probs,
            self.active,
        )


class GenerativeFunction(eqx.Module):
    """A program, a combinator or a `StateSpace`: what can be run with some sites given."""

    @abc.abstractmethod
    def run(
        self, key: PRNGKeyArray | None, given: Given, args: tuple, request: Request = PLAIN
    ) -> Outcome:
        """Run with the `given` sites fixed and the others drawn from their distributions.

        The primitive that combinators implement; programs and users call the operations below.
        """

    def simulate(self, key: PRNGKeyArray, *args: PyTree) -> Trace:
        """Draw from the program's prior; `observe` and `factor` go into `log_weight`."""
        return self.run(key, {}, args).trace()

    def assess(
        self, choices: Choices, *args: PyTree, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, ""], PyTree]:
        """Log density at `choices` (score + log_weight, nats), and the return value.

        Every site needs a value. Where a density is only estimated (`marginal`, `normalize`) a
        key is needed and the exponential of the result is an unbiased estimate.
        """
        out = self.run(key, as_given(choices), args, Request(complete=True))
        return total(out.log_probs) + out.log_weight, out.retval

    def generate(
        self, key: PRNGKeyArray, constraints: Choices, *args: PyTree
    ) -> tuple[Trace, Float[Array, ""]]:
        """Draw the unconstrained sites from their distributions given what precedes them.

        Law: E[exp(log_w) f(choices)] is the sum over all x that agree with the constraints of
        exp(assess(x)) f(x). log_w = log density of the constrained sites + log_weight.
        """
        given = as_given(constraints)
        out = self.run(key, given, args)
        trace = out.trace()
        return trace, out.weigh(given)

    def update(
        self, key: PRNGKeyArray, trace: Trace, choices: Choices, *args: PyTree
    ) -> tuple[Trace, Float[Array, ""], Choices]:
        """Change some choices, and the args; sites that did not happen before are drawn.

        Returns the new trace, log_w = log density(new) - log density of what was newly drawn
        - log density(old), and the replaced choices, which `update` takes back to the old trace.
        """
        changes = as_given(choices)
        given = overlay(changes, kept(trace))
        out = self.run(key, given, args)
        log_w = out.weigh(given) - trace.score - trace.log_weight
        return out.trace(), log_w, _replaced(trace, changes, out)

    def regenerate(
        self, key: PRNGKeyArray, trace: Trace, selection: Selection, *args: PyTree
    ) -> tuple[Trace, Float[Array, ""]]:
        """Draw the selected choices anew from their distributions and keep the rest.

        log_w is the log Metropolis-Hastings ratio of this move: densities of fresh draws, forward
        and in reverse, have cancelled. Estimated densities of the old trace are the stored ones
        (pseudo-marginal).
        """
        out, log_w = redraw(lambda given: self.run(key, given, args), trace, selection)
        return out.trace(), log_w

    def project(self, trace: Trace, selection: Selection, *args: PyTree) -> Float[Array, ""]:
        """Log density of the selected choices within the trace, nats: their part of `score`.

        `args` are those the trace was made with; the densities come from the trace, estimates
        included.
        """
        return total(trace.log_probs, selection.masks(trace.log_probs))


def likelihood(record: Outcome | Trace, fixed: Given) -> Float[Array, ""]:
    """Log density of the fixed sites, plus observes and factors, nats."""
    masks = given_masks(record.log_probs, fixed)
    return total(record.log_probs, masks) + record.log_weight


def redraw(
    run: Callable[[Given], Outcome], trace: Trace, selection: Selection, fixed: Given | None = None
) -> tuple[Outcome, Float[Array, ""]]:
    """The core of `regenerate`: the selected choices are drawn, except those `fixed`."""
    constrained = given_masks(trace.log_probs, fixed or {})
    masks = walk(_without, selection.masks(trace.log_probs), constrained)
    given = overlay(fixed or {}, kept(trace, masks))
    out = run(given)
    # In reverse, what is selected or did not happen in the new trace is drawn, unless constrained.
    still = walk(_conserved, trace.log_probs, masks, out.active, constrained)
    log_w = out.weigh(given)
    return out, log_w - total(trace.log_probs, still) - trace.log_weight


def _without(_, selected, fixed):
    if fixed is True or selected is False:
        return False
    if fixed is False:
        return selected
    return ~fixed if selected is True else selected & ~fixed


def kept(trace: Trace, drop: Any = None) -> Given:
    """The trace's choices as given where they happened, without those in `drop`."""

    def leaf(_, log_prob, value, active, dropped):
        if dropped is True:
            return None
        mask = None if dropped is None or dropped is False else ~dropped
        if active is not None:
            mask = active if mask is None else mask & active
        return Partial(value, mask)

    return prune(walk(leaf, trace.log_probs, trace.choices, trace.active, drop or {}))


def given_masks(log_probs: Any, given: Given) -> Any:
    """Per site: was it given (True, False or a boolean array over instances)?"""

    def leaf(_, log_prob, node):
        if node is None:
            return False
        mask = jax.tree.leaves(node, is_leaf=lambda x: isinstance(x, Partial))[0].mask
        return True if mask is None else mask

    return walk(leaf, log_probs, given)


def _conserved(_, log_prob, selected, active, constrained):
    if constrained is True:
        return True
    if selected is True:
        still = False
    elif selected is False:
        still = True if active is None else active
    else:
        still = ~selected if active is None else ~selected & active
    if constrained is False or still is True:
        return still
    return constrained if still is False else still | constrained


def _replaced(trace: Trace, changes: Given, out: Outcome) -> Choices:
    """Old values of the changed sites, and of those that no longer happen."""

    def leaf(_, log_prob, value, changed, before, after):
        if before is None:
            return None if changed is None else value
        gone = jnp.zeros_like(before) if changed is not None else after
        return Partial(value, before & ~gone)

    return prune(walk(leaf, trace.log_probs, trace.choices, changes, trace.active, out.active))
