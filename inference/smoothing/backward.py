"""Backward simulation: whole paths from the smoothing law, out of one run of a filter.

Godsill, Doucet and West (2004), "Monte Carlo smoothing for nonlinear time series", Algorithm 1;
for states that remember more than the last choices, Lindsten and Schon (2013), "Backward
simulation methods for Monte Carlo statistical inference", section 4.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ...ppl.compiled import compiled
from ...ppl.partial import Choices, Given, as_given
from .failure import Failure
from .forward import Forward
from .futures import log_future_ratios


class Moment(eqx.Module):
    """What one backward draw is made from: the particles of move t, and the future of steps t on.

    - `states`, `log_weights` [N]: of move t, before the resampling that follows it.
    - `parent`: whom the first particle of the future was really made from.
    - `future` [length, ...]: choices, valid from step t. `after`: the state they lead to at first.
    - `stop`: the number of steps that were run; `whole`: are these all?
    """

    forward: Forward
    t: Int[Array, ""]
    states: PyTree
    log_weights: Float[Array, "n"]
    parent: Int[Array, ""]
    future: Given
    after: PyTree
    stop: Int[Array, ""]
    whole: bool = eqx.field(static=True)

    def log_ratios(self, states: PyTree, reference: Any, wanted: Any) -> Float[Array, "n"]:
        """See `log_future_ratios`."""
        return log_future_ratios(
            self.forward.driver,
            states,
            jnp.asarray(reference, jnp.int32),
            wanted,
            self.future,
            self.t,
            self.stop,
            self.whole,
        )


class Backward(eqx.Module):
    """A way to draw, going backwards, which particle of move t a future is attached to.

    Law: the draw is from, or leaves invariant, the law with probabilities proportional to
    w_i gamma(x_i, future) / gamma(x_i). Then a path drawn with weight Z-hat is properly weighted,
    for every number of particles and every unbiased resampler.
    """

    @abc.abstractmethod
    def draw(self, key: PRNGKeyArray, moment: Moment) -> tuple[Int[Array, ""], Failure]:
        """The index, and what failed."""


class Genealogy(Backward):
    """The particle's own parent: no computation, and few different ancestors (path degeneracy)."""

    def draw(self, key, moment):
        """See `Backward.draw`."""
        return moment.parent, Failure.none()


class Exact(Backward):
    """A draw with all N probabilities computed: O(N) a step and path."""

    def draw(self, key, moment):
        """See `Backward.draw`."""
        log_weights = moment.log_weights
        alive = ~jnp.isneginf(log_weights)
        ratios = moment.log_ratios(moment.states, moment.parent, alive)
        return categorical(key, jnp.where(alive, log_weights + ratios, -jnp.inf)), Failure.none()


class Smoothed(eqx.Module):
    """Paths drawn from the smoothing law.

    - `choices`: leading axis M, equally weighted, given the run.
    - `indices` [M, length + 1]: the particle of each move that the path goes through.
    - `log_evidence`: of the run; each path with weight Z-hat is properly weighted.
    - `failure`: what makes the paths wrong, if anything.
    """

    choices: Choices
    indices: Int[Array, "paths moves"]
    log_evidence: Float[Array, ""]
    failure: Failure

    def expectation(self, f: Any) -> PyTree:
        """The mean of f(choices) over the paths."""
        return jax.tree.map(
            lambda x: jnp.mean(x.astype(jnp.result_type(float)), axis=0), jax.vmap(f)(self.choices)
        )


_EXACT = Exact()


def backward(
    key: PRNGKeyArray,
    forward: Forward,
    method: Backward = _EXACT,
    n_paths: int | None = None,
) -> Smoothed:
    """Draw paths backwards (N of them by default), independent given the run of the filter."""
    n = forward.final.shape[0] if n_paths is None else n_paths
    if n < 1:
        raise ValueError(f"n_paths is at least 1, got {n_paths}")
    return _backward(key, forward, method, n)


@compiled
def _backward(key: PRNGKeyArray, forward: Forward, method: Backward, n: int) -> Smoothed:
    def one(key):
        return drawn_path(key, forward, method)

    choices, indices, failures = jax.vmap(one)(jax.random.split(key, n))
    return Smoothed(choices, indices, forward.log_evidence, failures.first())


def drawn_path(
    key: PRNGKeyArray, forward: Forward, method: Backward, steps: Int[Array, ""] | None = None
) -> tuple[Choices, Int[Array, "moves"], Failure]:
    """One path through the particles: its choices, indices and what failed."""
    key_last, key_steps = jax.random.split(key)
    length = forward.length
    stop = length if steps is None else jnp.minimum(jnp.asarray(steps, jnp.int32), length)
    last = categorical(key_last, forward.final)
    indices = jnp.broadcast_to(last, (length + 1,))
    failure = Failure.of(forward.status)
    if length == 0:
        return forward.read(indices), indices, failure
    future = jax.tree.map(lambda x: jnp.zeros((length, *x.shape[2:]), x.dtype), forward.store)

    def back(k, carry):
        indices, future, failure = carry
        t = jnp.asarray(stop, jnp.int32) - 1 - k
        child = indices[t + 1]
        chosen = jax.tree.map(lambda x: x[t, child], forward.store)
        future = jax.tree.map(lambda x, row: x.at[t].set(row), future, chosen)
        moment = Moment(
            forward=forward,
            t=t,
            states=jax.tree.map(lambda x: x[t], forward.states),
            log_weights=forward.log_weights[t],
            parent=forward.ancestors[t, child],
            future=as_given(future),
            after=jax.tree.map(lambda x: x[t + 1, child], forward.states),
            stop=jnp.asarray(stop, jnp.int32),
            whole=steps is None,
        )
        index, found = method.draw(jax.random.fold_in(key_steps, t), moment)
        return indices.at[t].set(index), future, failure.then(found.code != 0, found.code, t)

    indices, _, failure = jax.lax.fori_loop(0, stop, back, (indices, future, failure))
    return forward.read(indices), indices, failure


def categorical(key: PRNGKeyArray, log_weights: Float[Array, "n"]) -> Int[Array, ""]:
    """An index by weight, never one of weight zero; the first if all are, or if one is NaN."""
    wrong = jnp.any(jnp.isnan(log_weights) | jnp.isposinf(log_weights))
    usable = ~wrong & ~jnp.all(jnp.isneginf(log_weights))
    safe = jnp.where(usable, log_weights, jnp.zeros_like(log_weights))
    return jnp.where(usable, jax.random.categorical(key, safe), 0).astype(jnp.int32)
