"""The marginal particle filter.

Klaas, de Freitas and Doucet (2005), "Toward practical N^2 Monte Carlo: the marginal particle
filter", section 3.

Particles are drawn from the mixture over all ancestors of the proposal, and weighed against the
mixture over all ancestors of the model. The weight no longer depends on which
ancestor a particle came from, so that it varies less than that of a filter over paths.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ..ppl.compiled import compiled
from ..ppl.errors import ProgramError
from ..ppl.feynman_kac import FeynmanKac, Moved
from ..ppl.generative import Request, given_masks, likelihood
from ..ppl.hot import is_hot
from ..ppl.keys import particle_key
from ..ppl.partial import Choices, Given, as_given, overlay, prune, spelled, total, walk
from ..ppl.proposal import Proposal
from ..ppl.status import DEAD, NAN, Status
from ..ppl.target import Target, as_target
from .particles import level_and_size
from .resampling import Resampler, Systematic

_COMPLETE = Request(complete=True)


class Marginals(eqx.Module):
    """What a marginal filter leaves: a weighted population of each move, and no paths.

    - `states` [length + 1, N, ...] after init and each step; `choices` [length, N, ...] of the
      steps, `initial` [N, ...] those of init.
    - `log_weights` [length + 1, N], nats, each with mean Z-hat so far: E[(1/N) sum_i w_i f(x_i)] is
      Z_t times the filtering expectation of f, for functions of the move t alone.
    - `log_evidence`, `ess` and their histories [length + 1]; `status`.
    """

    states: PyTree
    choices: Choices
    initial: Choices
    log_weights: Float[Array, "moves n"]
    log_evidence: Float[Array, ""]
    log_evidence_history: Float[Array, "moves"]
    ess: Float[Array, "moves"]
    status: Status

    @property
    def weights(self) -> Float[Array, "moves n"]:
        """Normalised weights of every move."""
        return jax.nn.softmax(self.log_weights, axis=-1)


class MarginalFilter(eqx.Module):
    """`MarginalFilter(n, proposal).run(key, target)`: N^2 densities a step, integrated ancestors.

    Law: for every number of particles Z-hat is unbiased, and the population of each move properly
    weighted for functions of that move (paths are integrated out: there are none). With the model
    as proposal the weights are those of the bootstrap filter; with a proposal they vary less than
    those of `SMC` with the same one. An ancestor counts for a particle if the step takes it to the
    particle's own state: in a model that remembers more than its last choices each has only its own
    ancestor, and the filter is that over paths.

    Every density has to be exact (no `marginal` or `normalize`), a model with `done` is an error,
    and so is hot state. Memory N^2 a step.
    """

    n_particles: int = eqx.field(static=True)
    proposal: Proposal | None = None
    resampler: Resampler = eqx.field(default_factory=Systematic)

    def __check_init__(self):
        if self.n_particles < 1:
            raise ValueError(f"MarginalFilter needs at least one particle, got {self.n_particles}")

    def run(self, key: PRNGKeyArray, target: Any, *, throw: bool = False) -> Marginals:
        """The populations of all moves; `throw=True` raises if the status is not ok."""
        result = _run(self, key, as_target(target))
        if throw and not isinstance(result.log_evidence, Tracer):
            result.status.throw()
        return result


@compiled
def _run(filter_: MarginalFilter, key: PRNGKeyArray, target: Target) -> Marginals:
    n, fk = filter_.n_particles, FeynmanKac(target, filter_.proposal)
    _check(fk)
    fixed_init, fixed = fk.split(target.constraints)
    each = jnp.arange(n, dtype=jnp.int32)
    key_init = jax.random.fold_in(key, 0)
    first = jax.vmap(lambda i: fk.init(particle_key(key_init, i), fixed_init))(each)
    level, size = level_and_size(first.log_potential)
    status = _checked(Status.ok(), first.log_potential, -1)

    def step(carry, row):
        states, log_weights, level, status = carry
        t, fixed_t = row
        key_t = jax.random.fold_in(key, t + 1)
        key_draw = jax.random.fold_in(key_t, 0xFFFFFFFF)
        ancestors = filter_.resampler.ancestors(key_draw, log_weights)

        def move(i, state):
            return fk.step(particle_key(key_t, i), fixed_t, state, t)

        moved = jax.vmap(move)(each, jax.tree.map(lambda x: x[ancestors], states))
        gain = _weigh(fk, states, log_weights, (moved, ancestors), fixed_t, t)
        new = jnp.where(jnp.isneginf(level), -jnp.inf, level + gain)
        new_level, size = level_and_size(new)
        status = _checked(status, new, t)
        out = (moved.state, moved.choices, new, new_level, size)
        return (moved.state, new, new_level, status), out

    carry = (first.state, first.log_potential, level, status)
    rows = (jnp.arange(fk.model.length, dtype=jnp.int32), fixed)
    carry, (states, choices, log_weights, levels, sizes) = jax.lax.scan(
        step, carry, rows, length=fk.model.length
    )

    def all_moves(one, later):
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), one, later)

    return Marginals(
        states=all_moves(first.state, states),
        choices=choices,
        initial=first.choices,
        log_weights=all_moves(first.log_potential, log_weights),
        log_evidence=carry[2],
        log_evidence_history=all_moves(level, levels),
        ess=all_moves(size, sizes),
        status=carry[3],
    )


def _weigh(
    fk: FeynmanKac,
    states: PyTree,
    log_weights: Float[Array, " n"],
    drawn: tuple[Moved, Int[Array, " n"]],
    fixed: Given,
    t: Int[Array, ""],
) -> Float[Array, " n"]:
    """Log of model mixture over proposal mixture at every particle, nats."""
    log_w = jax.nn.log_softmax(jnp.where(jnp.isnan(log_weights), -jnp.inf, log_weights))

    def one(particle):
        moved, ancestor = particle

        def from_(state):
            return _densities(fk, state, moved.choices, fixed, t)

        log_p, log_q, reached = jax.vmap(from_)(states)
        counted = _like(reached, ancestor) & ~jnp.isneginf(log_w)

        def mixture(x):
            return jax.nn.logsumexp(jnp.where(counted, log_w + x, -jnp.inf))

        log_p, log_q, own = mixture(log_p), mixture(log_q), log_q[ancestor]
        # A draw of no density (an empty distribution) leaves the particle without a successor.
        nothing = jnp.isneginf(log_p) | jnp.isneginf(own)
        return jnp.where(nothing, -jnp.inf, log_p - log_q)

    return jax.lax.map(one, drawn)


def _densities(
    fk: FeynmanKac, state: PyTree, choices: Choices, fixed: Given, t: Int[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""], PyTree]:
    """Log densities of a move from `state` under model and proposal, and where it leads."""
    target, model = fk.target, fk.model
    given = overlay(fixed, as_given(choices))
    out = model.advance(None, given, state, t, target.args, _COMPLETE)
    score = total(out.log_probs)
    log_p = target.raised(score + out.log_weight, likelihood(out, fixed))
    log_p = jnp.where(jnp.isneginf(score), -jnp.inf, log_p)
    free = walk(lambda _, lp, mask: _not(mask), out.log_probs, given_masks(out.log_probs, fixed))
    active = spelled(out.active, out.log_probs)
    proposal = fk.proposal and fk.proposal.step
    if proposal is None:
        return log_p, total(out.log_probs, free), (out.retval, active)
    args = (state, t, *fk._bound(), *model.bound, *target.args)
    names = jax.eval_shape(lambda k: proposal.run(k, {}, args), jax.random.key(0)).log_probs
    mine = prune(walk(lambda _, lp, node: node, names, as_given(choices)))
    draft = proposal.run(None, mine, args, _COMPLETE)
    proposed = given_masks(out.log_probs, mine)
    rest = walk(lambda _, lp, a, b: False if b is True else a, out.log_probs, free, proposed)
    used = walk(lambda _, lp, a: a if jnp.shape(a) == jnp.shape(lp) else True, names, active)
    log_q = total(draft.log_probs, used) - draft.log_weight + total(out.log_probs, rest)
    return log_p, log_q, (out.retval, active)


def _like(reached: PyTree, ancestor: Int[Array, ""]) -> Bool[Array, " n"]:
    """From which ancestors does the step lead where it leads from this one?"""
    same: list = []
    for x in jax.tree.leaves(reached):
        one = x[ancestor][None]
        near = x == one
        if jnp.issubdtype(x.dtype, jnp.inexact):
            near |= jnp.abs(x - one) <= 16 * jnp.finfo(x.dtype).eps * jnp.abs(one)
        same.append(jnp.all(near.reshape(x.shape[0], -1), axis=1))
    return jnp.all(jnp.stack(same), axis=0)


def _not(mask: Any) -> Any:
    return not mask if isinstance(mask, bool) else ~mask


def _checked(status: Status, log_weights: Float[Array, " n"], t: Any) -> Status:
    status = status.then(jnp.any(jnp.isnan(log_weights)), NAN, t)
    return status.then(jnp.all(jnp.isneginf(log_weights)), DEAD, t)


def _check(fk: FeynmanKac) -> None:
    if fk.model.done is not None:
        raise ProgramError(
            "a marginal filter weighs every particle against every ancestor, which is not defined "
            "for a model whose particles end at different times: use SMC with the proposal"
        )
    state = jax.eval_shape(
        lambda k: fk.model.start(k, {}, fk.target.args).retval, jax.random.key(0)
    )
    if any(is_hot(x) for x in jax.tree.leaves(state, is_leaf=is_hot)):
        raise ProgramError(
            "a marginal filter compares states, and this one has a part inside Hot, which would be "
            "rebuilt N^2 times a step: use SMC with the proposal"
        )
