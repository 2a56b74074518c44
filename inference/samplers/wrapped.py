"""Generative functions that re-weigh another: what the paths of these samplers run on.

Each keeps the free choices and their law, or says what it does to them, so that every kernel
works on it unchanged.
"""

from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ...ppl.errors import ProgramError
from ...ppl.generative import PLAIN, GenerativeFunction, Outcome, Request, given_masks, likelihood
from ...ppl.partial import Choices, as_given, overlay, prune, total, walk, where_leading
from ...ppl.program import as_program
from ...ppl.proposal import Proposal
from ...ppl.target import Target
from ...ppl.trace import Trace


class Proposed(GenerativeFunction):
    """A target's model with the sites that a proposal q names drawn from q.

    The density of what q draws counts as score and gamma / q as likelihood: the target is the
    same, and tempered it is q^(1 - beta) gamma^beta where q draws every free site. Sites that q
    does not name keep the model's law. Kernels in coordinates need q's supports to be the model's.
    """

    target: Target
    proposal: GenerativeFunction
    bound: tuple = ()

    def run(self, key, given, args, request=PLAIN):
        """See `GenerativeFunction.run`."""
        bound = (*self.bound, *args)
        quiet = Request(request.complete, (*request.where, "the proposal"), True)
        names = jax.eval_shape(lambda k: self.proposal.run(k, {}, bound), jax.random.key(0))
        fixed = as_given(self.target.constraints)
        clash = sorted(set(names.log_probs) & set(fixed))
        if clash:
            raise ProgramError(
                f"the proposal draws {clash}, which the target's constraints fix: leave them out "
                "of the proposal"
            )
        keys = (None, None) if key is None else tuple(jax.random.split(key))
        mine = prune(walk(lambda _, lp, node: node, names.log_probs, given))
        draft = self.proposal.run(keys[0], mine, bound, quiet)
        out = self.target.model.run(keys[1], overlay(given, as_given(draft.choices)), args, request)
        log_likelihood = likelihood(out, fixed)
        # What the model does not reach is a draw that counts nowhere.
        log_q = walk(_where_active, draft.log_probs, out.active)
        log_p = walk(lambda _, q, p: p, draft.log_probs, out.log_probs)
        log_weight = out.log_weight + total(log_p) - total(log_q)
        if self.target.exponent is not None:
            more = (self.target.exponent.astype(log_likelihood.dtype) - 1) * log_likelihood
            log_weight = log_weight + more
        nothing = jnp.isneginf(jnp.stack([total(log_p), total(log_q), log_likelihood]))
        # A kernel's coordinates may stand for another value in q than in the model.
        same = walk(_close, draft.log_probs, draft.choices, out.choices, out.active)
        nothing = jnp.any(nothing) | ~jax.tree.reduce(jnp.logical_and, same, jnp.ones((), bool))
        log_weight = jnp.where(nothing, -jnp.inf, log_weight)
        return eqx.tree_at(
            lambda o: (o.log_probs, o.log_weight),
            out,
            (_merged(out.log_probs, log_q), log_weight),
        )


def as_proposal(proposal: Any) -> Any:
    """None, a `Proposal` or a generative function as it is, a function as a program."""
    return proposal if proposal is None or isinstance(proposal, Proposal) else as_program(proposal)


def proposed(target: Target, proposal: Any) -> Target:
    """The target with some free sites drawn from a proposal; see `Proposed`.

    `proposal` is a program with the model's args, or a `Proposal(init=program)`.
    """
    if proposal is None:
        return target
    if isinstance(proposal, Proposal):
        if proposal.init is None or proposal.step is not None:
            raise ProgramError(
                "a sampler that moves whole traces takes a proposal of whole traces: "
                "Proposal(init=program), or the program itself"
            )
        model = Proposed(target, proposal.init, proposal.bound)
    else:
        model = Proposed(target, proposal)
    return Target(model, target.args, target.constraints)


class Counted(GenerativeFunction):
    """A model of which only the first of `batches` parts of the constraints count.

    A constrained site is released along its leading instance axis, a constrained site without one
    at the first part; `released` of `batches` parts count. Free sites keep their law given all.
    """

    model: GenerativeFunction
    constraints: Choices
    released: Int[Array, ""]
    batches: int = eqx.field(static=True)

    def run(self, key, given, args, request=PLAIN):
        """See `GenerativeFunction.run`."""
        out = self.model.run(key, given, args, request)
        masks = given_masks(out.log_probs, as_given(self.constraints))
        sized: list = []

        def leaf(_, log_prob, mask):
            if mask is False:
                return log_prob
            shape = jnp.shape(log_prob)
            if shape:
                sized.append(shape)
                size = jnp.int32(shape[0])
                index = jnp.arange(shape[0], dtype=jnp.int32)
                counts = index * self.batches < self.released * size
            else:
                counts = self.released > 0
            kept = where_leading(counts, log_prob, jnp.zeros_like(log_prob))
            return kept if mask is True else jnp.where(mask, kept, log_prob)

        log_probs = walk(leaf, out.log_probs, masks)
        if not sized:
            raise ProgramError(
                "data annealing needs constraints with one instance an observation: make the data "
                "a site under ppl.vmap or ppl.scan (or of a StateSpace's step) and constrain it, "
                "or give at=, a function at(target, t) -> Target"
            )
        return eqx.tree_at(lambda o: o.log_probs, out, log_probs)


class Above(GenerativeFunction):
    """A target's prior where the likelihood is above a level: the law that nested sampling draws.

    Likelihoods that equal the level are ordered by a uniform label: they count with probability
    1 - label. The return value is (the model's, log likelihood, the model's log weight).
    """

    target: Target
    level: Float[Array, ""]
    label: Float[Array, ""]

    def run(self, key, given, args, request=PLAIN):
        """See `GenerativeFunction.run`."""
        out = self.target.model.run(key, given, args, request)
        log_weight, retval = self._shaped(out, total(out.log_probs))
        return Outcome(out.choices, out.log_probs, out.active, log_weight, retval, out.reports)

    def dressed(self, trace: Trace) -> Trace:
        """A trace of the target as one of this."""
        log_weight, retval = self._shaped(trace, trace.score)
        return replace(trace, log_weight=log_weight, retval=retval)

    def again(self, trace: Trace) -> Trace:
        """A trace of this at another level as one at this level."""
        _, scaled, plain, log_weight = trace.retval
        return replace(trace, log_weight=_shifted(log_weight, plain, self.allowed(scaled)))

    def _shaped(self, record: Outcome | Trace, score: Float[Array, ""]):
        plain = likelihood(record, as_given(self.target.constraints))
        plain = jnp.where(jnp.isneginf(score), -jnp.inf, plain)
        exponent = self.target.exponent
        scaled = plain if exponent is None else plain * exponent.astype(plain.dtype)
        scaled = jnp.where(jnp.isneginf(plain), -jnp.inf, scaled)
        log_weight = _shifted(record.log_weight, plain, self.allowed(scaled))
        return log_weight, (record.retval, scaled, plain, record.log_weight)

    def allowed(self, log_likelihood: Float[Array, ""]) -> Float[Array, ""]:
        """Log probability that a point of this likelihood is above the level."""
        tied = jnp.where(log_likelihood == self.level, jnp.log1p(-self.label), -jnp.inf)
        return jnp.where(log_likelihood > self.level, jnp.zeros_like(tied), tied)


def _shifted(
    log_weight: Float[Array, ""], log_likelihood: Float[Array, ""], allowed: Float[Array, ""]
) -> Float[Array, ""]:
    """A log weight with the likelihood taken out and `allowed` put in; zero likelihood stays."""
    gone = jnp.isneginf(log_likelihood)
    moved = log_weight - jnp.where(gone, 0.0, log_likelihood) + allowed
    return jnp.where(gone, -jnp.inf, moved)


def _close(_, log_prob, drawn, taken, active):
    def leaf(a, b):
        near = jnp.isclose(a, b, rtol=1e-4) if jnp.issubdtype(a.dtype, jnp.inexact) else a == b
        return jnp.all(near if active is None else where_leading(~active, True, near))

    return jax.tree.map(leaf, drawn, taken)


def _where_active(_, log_prob, active):
    return log_prob if active is None else where_leading(active, log_prob, jnp.zeros_like(log_prob))


def _merged(log_probs: Any, over: Any) -> Any:
    """The log densities with those of `over` in their places."""
    out = dict(log_probs)
    for name, node in over.items():
        inside = isinstance(node, dict) and isinstance(log_probs.get(name), dict)
        out[name] = _merged(log_probs[name], node) if inside else node
    return out
