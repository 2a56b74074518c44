"""The loop of beam searches: expand, weigh, keep the best, until all are finished."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ...ppl.combinators.branches import any_member
from ...ppl.feynman_kac import FeynmanKac, Moved
from ...ppl.generative import given_masks
from ...ppl.hot import drop_hot
from ...ppl.partial import total
from ...ppl.status import DEAD, NAN, Status
from ...ppl.target import Target
from ..particles import trace_back
from ..population import buffers, get_row, set_row
from ..rejuvenate import past
from .path import Beams, Path


class _Front(eqx.Module):
    state: PyTree
    log_prior: Float[Array, "width"]
    log_likelihood: Float[Array, "width"]
    lengths: Int[Array, "width"]
    scores: Float[Array, "width"]
    store: Any
    parents: Int[Array, "steps width"]
    spent: tuple
    status: Status


def grow(search: Any, key: PRNGKeyArray, target: Target) -> Beams:
    """The final beams; `search` is a beam search, see `beam.py`."""
    width, fk = search.width, FeynmanKac(target)
    model = fk.model
    first, later = fk.split(target.constraints)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, 0), i))
    moved = jax.vmap(lambda k: fk.init(k, first))(keys(jnp.arange(width)))
    prior, log_likelihood = jax.vmap(lambda m: _gains(target, m, first))(moved)
    settled = jax.tree.leaves(given_masks(moved.log_probs, first))
    if search.expand.weighed_first and all(x is True for x in settled):
        # All beams are the same and so would be their children: one of a group is enough.
        first_of_group = jnp.arange(width) % (width // search.groups) == 0
        log_likelihood = jnp.where(first_of_group, log_likelihood, -jnp.inf)
    zero = jnp.zeros(width, jnp.int32)
    scores, nan = _scores(search, moved.state, prior, log_likelihood, zero)
    row = _row_like(search, fk, later, moved.state) if model.length else {}
    front = _Front(
        state=moved.state,
        log_prior=prior,
        log_likelihood=log_likelihood,
        lengths=zero,
        scores=scores,
        store=buffers(row, model.length),
        parents=jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), (model.length, width)),
        spent=(jnp.int32(0),) * 4,
        status=_status(Status.ok(("the score",)), scores, nan, -1),
    )

    def going(carry):
        t, front = carry
        return (t < model.length) & any_member(jnp.any(_open(fk, front)))

    def go(carry):
        t, front = carry
        given = get_row(later, t)
        return t + 1, _grown(search, fk, jax.random.fold_in(key, t + 1), given, front, t)

    if model.length:
        front = jax.lax.while_loop(going, go, (jnp.int32(0), front))[1]
    return _finished(search, fk, moved.choices, front)


def _open(fk: FeynmanKac, front: _Front) -> Bool[Array, "width"]:
    """Which beams can grow: alive and not finished."""
    return (front.scores > -jnp.inf) & ~jax.vmap(fk.model.finished)(front.state)


def _gains(target: Target, moved: Moved, given: Any):
    """What a move adds to log prior and log likelihood, nats."""
    fixed = total(moved.log_probs, given_masks(moved.log_probs, given))
    prior = total(moved.log_probs) - jnp.where(jnp.isneginf(fixed), 0.0, fixed)
    gain = fixed + moved.log_weight
    return prior, target.raised(gain, gain)


def _scores(search: Any, state, prior, likelihood, lengths):
    """Scores, -inf where there is nothing to rank; and which were NaN without reason."""
    scores = jax.vmap(lambda *x: search.score(Path(*x)))(state, prior, likelihood, lengths)
    dead = jnp.isneginf(prior) | jnp.isneginf(likelihood)
    nan = ~dead & jnp.isnan(scores)
    return jnp.where(dead | nan, -jnp.inf, scores).astype(prior.dtype), nan


def _status(status: Status, scores, nan, t) -> Status:
    status = status.then(jnp.any(nan), NAN, t)
    return status.then(jnp.all(jnp.isneginf(scores)), DEAD, t)


def _row_like(search: Any, fk: FeynmanKac, later: Any, state: PyTree) -> Any:
    def row(state):
        given = jax.tree.map(lambda x: x[0], later)

        def one(s):
            return fk.step(jax.random.key(0), given, s, jnp.int32(0)).choices

        return jax.vmap(one)(state)

    return jax.eval_shape(row, state)


def _grown(search: Any, fk: FeynmanKac, key, given, front: _Front, t) -> _Front:
    expand, width = search.expand, search.width
    one_state = jax.tree.map(lambda x: x[0], front.state)
    size = expand.size(fk, given, one_state)
    opened = _open(fk, front)
    numbers = jnp.arange(size, dtype=jnp.int32)

    def child(parent, state, number):
        return expand.child(fk, jax.random.fold_in(key, parent), given, state, t, number)

    def weighed(number, parent, state, prior, log_likelihood, length, is_open):
        moved = child(parent, state, number)
        gains = _gains(fk.target, moved, given)
        prior, log_likelihood = prior + gains[0], log_likelihood + gains[1]
        # What is finished is its own only child.
        log_likelihood = jnp.where(is_open | (number == 0), log_likelihood, -jnp.inf)
        length = length + is_open.astype(jnp.int32)
        path = (moved.state, prior, log_likelihood, length)
        score, nan = jax.tree.map(
            lambda x: x[0], _scores(search, *jax.tree.map(lambda x: x[None], path))
        )
        return (prior, log_likelihood, length, score, nan & is_open), moved

    def family(*parent):
        return jax.vmap(lambda number: weighed(number, *parent))(numbers)

    places = jnp.arange(width, dtype=jnp.int32)
    columns = (places, front.state, front.log_prior, front.log_likelihood, front.lengths, opened)
    (prior, log_likelihood, lengths, scores, nan), moved = jax.vmap(family)(*columns)
    # Of equal scores top_k takes the first: the child of the better parent.
    grouped = scores.reshape(search.groups, -1)
    kept, index = jax.lax.top_k(grouped, width // search.groups)
    index = index + grouped.shape[1] * jnp.arange(search.groups, dtype=index.dtype)[:, None]
    kept, index = kept.reshape(-1), index.reshape(-1).astype(jnp.int32)
    parent, number = index // size, index % size
    if expand.weighed_first:
        states = jax.tree.map(lambda x: x[parent], front.state)
        moved = written = jax.vmap(child)(parent, states, number)
        made = opened[parent] & (kept > -jnp.inf)
    else:
        written = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), moved)
        made = jnp.repeat(opened, size)
        moved = jax.tree.map(lambda x: x[parent, number], moved)
    tokens = made.astype(jnp.int32)
    if search.tokens is not None:
        tokens = tokens * jax.vmap(search.tokens)(written.choices).astype(jnp.int32)
    spent = (
        jnp.sum(tokens),
        jnp.sum(made, dtype=jnp.int32),
        jnp.any(opened).astype(jnp.int32),
        jnp.sum(opened, dtype=jnp.int32) * size,
    )
    return _Front(
        state=moved.state,
        log_prior=prior[parent, number],
        log_likelihood=log_likelihood[parent, number],
        lengths=lengths[parent, number],
        scores=kept,
        store=set_row(front.store, t, moved.choices),
        parents=set_row(front.parents, t, parent),
        spent=tuple(a + b for a, b in zip(front.spent, spent, strict=True)),
        status=_status(front.status, kept, nan, t),
    )


def _finished(search: Any, fk: FeynmanKac, first: Any, front: _Front) -> Beams:
    ending = jax.vmap(fk.end)(front.state)
    log_likelihood = front.log_likelihood + ending
    scores, nan = _scores(search, front.state, front.log_prior, log_likelihood, front.lengths)
    scores = jnp.where(jnp.isneginf(front.scores), -jnp.inf, scores)
    scores, order = jax.lax.top_k(scores, search.width)
    initial, store = past(first, front.store, trace_back(front.parents, order.astype(jnp.int32)))
    tokens, moves, passes, rewards = front.spent
    return Beams(
        choices={**initial, **store},
        scores=scores,
        log_prior=front.log_prior[order],
        log_likelihood=log_likelihood[order],
        lengths=front.lengths[order],
        state=jax.tree.map(lambda x: x[order], drop_hot(front.state)),
        status=_status(front.status, scores, nan, fk.model.length),
        tokens=tokens,
        moves=moves,
        passes=passes,
        rewards=rewards,
    )
