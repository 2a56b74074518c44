"""Variational state-space models: guides over the steps of a model, and weighted KL terms.

Krishnan, Shalit and Sontag (2017), "Structured inference networks for nonlinear state space
models", equation 6; Maddison et al. (2017), "Filtering variational objectives". Weights on the KL
terms: Higgins et al. (2017), "beta-VAE"; Sonderby et al. (2016) anneal them from 0 to 1.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from ...ppl.code import Code
from ...ppl.errors import ProgramError
from ...ppl.generative import PLAIN, GenerativeFunction, Outcome, Request
from ...ppl.partial import as_given, overlay, walk
from ...ppl.program import program
from ...ppl.proposal import Proposal
from ...ppl.state_space import StateSpace
from ...ppl.target import Target, as_target
from .context import ObjectiveContext
from .objective import Objective, objective


def stepwise_guide(target: Any, proposal: Proposal) -> StateSpace:
    """A proposal q(x_t | x_{t-1}, y) of a StateSpace as a guide over all its steps.

    Law: the product of the proposal's steps, the state moved on by the model's own step at what was
    drawn. With q(x_t | x_{t-1}, y_t) it is the filtering form; a proposal that reads all data in
    its args can reach the posterior. The same object serves `SMC(proposal=proposal)`. The guide
    holds the target's arrays besides the proposal's, and is run without args: make it where it is
    used, inside an objective (`stepwise_elbo` does), so that only the proposal is trained.

    Raises:
        ProgramError: the target is no StateSpace, or a free site is not proposed.
    """
    target = as_target(target)
    model = target.model
    if not isinstance(model, StateSpace):
        raise ProgramError(
            "a guide by steps is for a StateSpace; a program's guide is a program with its sites"
        )
    if model.done is not None:
        raise ProgramError("a guide by steps is for a model of fixed length, without done=")
    fixed = as_given(target.constraints)
    first, later = model.split(fixed, target.args)
    args = (*model.bound, *target.args)
    given = (*proposal.bound, *args)
    start = _Start(proposal.init, model.init, first, args, given)
    step = _Step(proposal.step, model.step, later, args, given)
    return StateSpace(start, step, model.length)


class _Start(GenerativeFunction):
    """Init drawn by its proposal; the state is the model's."""

    draft: GenerativeFunction | None
    model: GenerativeFunction
    fixed: Any
    args: tuple
    given: tuple

    def run(self, key, given, args, request=PLAIN):
        """See `GenerativeFunction.run`."""
        return _drawn(self, self.fixed, self.args, self.given, key, given, request)


class _Step(GenerativeFunction):
    """A step drawn by its proposal; the state is the model's."""

    draft: GenerativeFunction | None
    model: GenerativeFunction
    fixed: Any
    args: tuple
    given: tuple

    def run(self, key, given, args, request=PLAIN):
        """See `GenerativeFunction.run`."""
        state, t = args
        fixed = jax.tree.map(lambda x: x[t], self.fixed)
        args, extra = (state, t, *self.args), (state, t, *self.given)
        return _drawn(self, fixed, args, extra, key, given, request)


def _drawn(self, fixed, args, extra, key, given, request) -> Outcome:
    nothing = program(_no_site)
    out = (self.draft or nothing).run(key, given, extra, request)
    values = overlay(as_given(out.choices), fixed)
    try:
        # The key is for densities that are only estimated, which are dropped: nothing is drawn.
        moved = self.model.run(jax.random.key(0), values, args, Request(complete=True))
    except ProgramError as error:
        raise ProgramError(
            f"the guide by steps draws {sorted(out.choices)}, from which the model's state cannot "
            f"be moved on: {error}. Propose every free site of the model's init and step"
        ) from error
    state = moved.retval
    return Outcome(out.choices, out.log_probs, out.active, out.log_weight, state, out.reports)


def _no_site(ctx, *args):
    return {}


class Weighted(GenerativeFunction):
    """A generative function with the log densities of its sites times weights; no normalized law.

    `weight` is a number, or one a step [T] for sites with that leading axis (those of a
    StateSpace's init have weight 1). Sites in `data`, observes and factors count once.
    """

    inner: GenerativeFunction
    weight: Float[Array, "*steps"]
    data: tuple[str, ...] = eqx.field(static=True, default=())

    def run(self, key, given, args, request=PLAIN):
        """See `GenerativeFunction.run`."""
        out = self.inner.run(key, given, args, request)

        def leaf(path, log_prob):
            steps = self.weight.shape
            if path[0] in self.data or jnp.shape(log_prob)[: len(steps)] != steps:
                return log_prob
            axes = (1,) * (jnp.ndim(log_prob) - len(steps))
            return self.weight.reshape(steps + axes).astype(log_prob.dtype) * log_prob

        return eqx.tree_at(lambda o: o.log_probs, out, walk(leaf, out.log_probs))


@objective
def stepwise_elbo(ctx: ObjectiveContext, proposal: Proposal, target: Any) -> Float[Array, ""]:
    """The evidence lower bound with a proposal as guide, see `stepwise_guide`.

    Arguments (proposal, target): the proposal's arrays are what is trained.
    """
    x, log_q = ctx.draw("guide", stepwise_guide(target, proposal))
    return ctx.log_density("target", target, x) - log_q


def weighted_elbo(weight: Float[ArrayLike, "*steps"]) -> Objective:
    """E_q[log p(y | x)] - sum over t of weight_t KL_t(q_t, p_t): not the ELBO, whose weights are 1.

    `weight`: one for all sites, or one a step [T]. A lower bound on log Z where every weight is at
    least 1 (a lower one than the ELBO); below 1 it is no bound, and its maximum no posterior: for
    annealing KL terms in, or for trading rate against distortion. Each KL term is estimated by the
    draw. Arguments (guide, target): the guide a generative function or, of a StateSpace, a
    `Proposal`. What the target's constraints fix counts as data.
    """
    weight = jnp.asarray(weight, dtype=float)
    if weight.ndim > 1:
        raise ValueError(f"weights are one number or one a step, got shape {weight.shape}")
    return Objective(Code(_weighted_elbo), (weight,))


def _weighted_elbo(ctx: ObjectiveContext, weight: Any, guide: Any, target: Any) -> Any:
    target = as_target(target)
    if isinstance(guide, Proposal):
        guide = stepwise_guide(target, guide)
    x, _ = ctx.draw("guide", guide)
    model = Weighted(target.model, weight, tuple(target.constraints))
    weighted = Target(model, target.args, target.constraints, target.exponent)
    log_p = ctx.log_density("target", weighted, x)
    return log_p - ctx.log_density("guide again", Weighted(guide, weight), x)
