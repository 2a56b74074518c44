"""Smoothing marginals on the particles of a run: exact reweighting in O(N^2), and fixed lag.

Forward filtering backward smoothing: Doucet, Godsill and Andrieu (2000), "On sequential Monte
Carlo sampling methods for Bayesian filtering", section V. Fixed lag: Kitagawa and Sato (2001);
its bias: Olsson, Cappe, Douc and Moulines (2008).
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ...ppl.compiled import compiled
from ...ppl.partial import as_given
from ..particles import trace_back
from .failure import MEMORY, Failure
from .forward import Forward
from .futures import follow


class Marginals(eqx.Module):
    """Weighted states, move by move: [length + 1, N, ...] and normalised log-weights.

    A state's law is its marginal given all data; move 0 is init, move t + 1 is step t.
    """

    states: PyTree
    log_weights: Float[Array, "moves n"]
    failure: Failure

    def expectation(self, f: Callable) -> PyTree:
        """The mean of f(state) at every move: leaves [length + 1, ...]."""
        values = jax.vmap(jax.vmap(f))(self.states)
        weights = jnp.exp(self.log_weights)

        def mean(x):
            w = weights.reshape(weights.shape + (1,) * (x.ndim - 2))
            x = x.astype(w.dtype)
            return jnp.sum(jnp.where(w > 0, w * x, jnp.zeros_like(x)), axis=1)

        return jax.tree.map(mean, values)


def normalized(log_weights: Float[Array, "n"]) -> Float[Array, "n"]:
    """Log-weights that sum to one; as they are if all are zero."""
    total = jax.nn.logsumexp(log_weights)
    return jnp.where(jnp.isneginf(total), log_weights, log_weights - total)


@compiled
def marginals(forward: Forward) -> Marginals:
    """Every particle of the filter weighted by what came after it: O(N^2) a step.

    The state must be a function of its step's own choices (checked: `failure` says if it is not).
    """
    length, first = forward.length, Failure.of(forward.status)
    last = normalized(forward.final)
    if length == 0:
        return Marginals(forward.states, last[None], first)

    def back(carry, t):
        after, failure = carry
        now = forward.log_weights[t]
        matrix, moved = densities(forward, t, ~jnp.isneginf(after))
        failure = failure.then(moved, MEMORY, t)
        predicted = jax.nn.logsumexp(now[:, None] + matrix, axis=0)
        weighed = now[:, None] + matrix + (after - predicted)[None, :]
        # A pair with nothing on one side counts for nothing.
        empty = jnp.isneginf(matrix) | jnp.isneginf(now)[:, None] | jnp.isneginf(after)[None, :]
        smoothed = normalized(jax.nn.logsumexp(jnp.where(empty, -jnp.inf, weighed), axis=1))
        return (smoothed, failure), smoothed

    (_, failure), head = jax.lax.scan(back, (last, first), jnp.arange(length), reverse=True)
    return Marginals(forward.states, jnp.concatenate([head, last[None]]), failure)


def densities(
    forward: Forward, t: Int[Array, ""], wanted: Bool[Array, "n"]
) -> tuple[Float[Array, "n n"], Bool[Array, ""]]:
    """Log density [i, j] of step t from particle i to the choices of j, and if a state remembers.

    It remembers if from some i the choices of a wanted j lead to another state than from j's own
    parent.
    """
    states = jax.tree.map(lambda x: x[t], forward.states)
    reached = jax.tree.map(lambda x: x[t + 1], forward.states)
    chosen = jax.tree.map(lambda x: x[t], forward.store)
    parents = jax.tree.map(lambda x: x[forward.ancestors[t]], states)
    alive = ~jnp.isneginf(forward.log_weights[t])
    driver = forward.driver

    def to(choices, parent, state):
        true = follow(driver, parent, t, as_given(choices))

        def from_(before):
            made = follow(driver, before, t, as_given(choices))
            pairs = zip(jax.tree.leaves(made.active), jax.tree.leaves(true.active), strict=True)
            fits = [jnp.all(a == b) for a, b in pairs]
            pairs = zip(jax.tree.leaves(made.state), jax.tree.leaves(state), strict=True)
            same = [jnp.all(a == b) for a, b in pairs]
            yes = jnp.ones((), bool)
            fits, same = jnp.all(jnp.stack([yes, *fits])), jnp.all(jnp.stack([yes, *same]))
            log_density = jnp.where(fits, made.log_density, -jnp.inf)
            return log_density, same | jnp.isneginf(log_density)

        return jax.vmap(from_)(states)

    matrix, same = jax.vmap(to)(chosen, parents, reached)
    moved = jnp.any(~same & wanted[:, None] & alive[None, :])
    return matrix.T, moved


def fixed_lag(forward: Forward, lag: Int[Array, ""] | int) -> Marginals:
    """The particles `lag` steps later traced back: little variance, biased by what it cuts off.

    Move t has the law of x_t given the data up to step t + lag; with a lag of `length` this is the
    genealogy, with 0 the filter. The weights are of the states traced back.
    """
    return _fixed_lag(forward, jnp.asarray(lag, jnp.int32))


@compiled
def _fixed_lag(forward: Forward, lag: Int[Array, ""]) -> Marginals:
    length = forward.length
    n = forward.final.shape[0]
    each = jnp.arange(n, dtype=jnp.int32)
    weights = jnp.concatenate([forward.log_weights[:-1], forward.final[None]])

    def one(t):
        later = jnp.minimum(t + lag, length)
        inside = jnp.arange(length)[:, None] < later
        lineage = trace_back(jnp.where(inside, forward.ancestors, each[None]), each)[t]
        return jax.tree.map(lambda x: x[t, lineage], forward.states), normalized(weights[later])

    states, log_weights = jax.lax.map(one, jnp.arange(length + 1, dtype=jnp.int32))
    return Marginals(states, log_weights, Failure.of(forward.status))
