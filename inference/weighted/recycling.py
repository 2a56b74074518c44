"""Adaptive multiple importance sampling: every draw is weighed again as proposals are learned.

Cornuet, Marin, Mira and Robert (2012), "Adaptive multiple importance sampling", Scandinavian
Journal of Statistics 39(4), Algorithm 1 (AMIS).
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ...ppl.compiled import compiled
from ...ppl.partial import Choices
from ...ppl.status import DEAD, NAN, OK, Status
from ...ppl.target import Target, as_target
from ..mapping import Mapping, Vmap
from ..particles import Particles, log_mean_exp
from ..pooling import pool
from ..population import set_row
from ..resampling import effective_sample_size, is_dead
from .adaptation import Adapt, Adaptation
from .multiple import Sampler
from .population import shared_sampler
from .scoring import log_densities


class Recycled(eqx.Module):
    """All draws of all iterations, weighed by the mixture of all proposals. No `Particles`.

    `choices` [iterations x N, ...], the earliest first; `log_weights`, nats. `log_evidence` is
    *consistent*, not unbiased, and so is `expectation`; `ess` that of the weights.
    """

    choices: Choices
    log_weights: Float[Array, "*batch n"]
    log_evidence: Float[Array, "*batch"]
    ess: Float[Array, "*batch"]
    status: Status

    @property
    def weights(self) -> Float[Array, "*batch n"]:
        """Normalised weights."""
        return jax.nn.softmax(self.log_weights, axis=-1)

    def expectation(self, f: Callable[[Choices], Any]) -> PyTree:
        """sum_i W_i f(choices_i)."""
        w = self.weights

        def mean(x):
            shaped = w.reshape((-1,) + (1,) * (x.ndim - 1))
            return jnp.sum(jnp.where(shaped > 0, shaped * x.astype(w.dtype), 0.0), axis=0)

        return jax.tree.map(mean, jax.vmap(f)(self.choices))


class AdaptiveMultipleImportance(eqx.Module):
    """`iterations` populations from learned proposals, each draw weighed by the mixture of all.

    Iteration t draws N particles from q_t, made by `adapt` from *all* earlier draws; then every
    draw x has the weight gamma(x) / ((1/t) sum_s q_s(x)) (deterministic mixture). Early proposals
    that missed the target cost little, and nothing is thrown away.

    Law: *consistent* at best, never unbiased: q_t depends on the draws that it weighs. Cornuet et
    al. prove no convergence of the algorithm as stated; Marin, Pudlo and Sedki (2019), "Consistency
    of adaptive importance sampling and recycling schemes", do as populations grow over iterations
    and for proposals learned from the last one only. With proposals that learn nothing it is
    properly weighted. For an unbiased evidence use `PopulationMonteCarlo`, or draw a fresh
    population from the last proposals.

    - `n_particles` an iteration, shared equally by the proposals' components.
    - `adapt`: an `Adaptation`, or a function `adapt(particles) -> ppl.Proposal` (or a tuple) of
      all draws so far; places that are not yet drawn have weight zero.
    - `start`: the proposals of the first iteration, as for `PopulationMonteCarlo`.

    Costs iterations^2 N densities, and keeps all proposals.
    """

    n_particles: int = eqx.field(static=True)
    iterations: int = eqx.field(static=True)
    adapt: Adaptation
    start: tuple[Sampler, ...]
    mapping: Mapping

    def __init__(
        self,
        n_particles: int,
        iterations: int,
        adapt: Adaptation | Callable,
        start: Sampler | tuple[Sampler, ...] = None,
        mapping: Mapping | None = None,
    ):
        if iterations < 2:
            raise ValueError(f"iterations={iterations}: something is learned from two on")
        self.n_particles, self.iterations = n_particles, iterations
        self.adapt = adapt if isinstance(adapt, Adaptation) else Adapt(adapt)
        self.start = start if isinstance(start, tuple) else (start,)
        self.mapping = Vmap() if mapping is None else mapping

    def run(self, key: PRNGKeyArray, target: Any, *, throw: bool = False) -> Recycled:
        """All draws with their last weights; `throw=True` raises if the status is not ok."""
        result = _run(self, key, as_target(target))
        if throw and not isinstance(result.log_evidence, Tracer):
            result.status.throw()
        return result


class _Drawn(eqx.Module):
    """Rows of iterations: draws, log gamma, and log of the sum of all proposals' densities."""

    rows: Particles
    log_gamma: Float[Array, "*iterations n"]
    log_sum: Float[Array, "*iterations n"]

    def log_weights(self, t: Int[Array, ""] | int) -> Float[Array, "iterations n"]:
        """After t iterations; what is not drawn has weight zero."""
        log_mixture = self.log_sum - jnp.log(jnp.asarray(t, self.log_sum.dtype))
        there = jnp.arange(self.log_sum.shape[0])[:, None] < t
        # An empty distribution's draw has weight zero, whatever its density.
        dead = ~there | jnp.isneginf(self.rows.log_weights) | jnp.isneginf(self.log_gamma)
        return jnp.where(dead, -jnp.inf, self.log_gamma - log_mixture)

    def pooled(self, t: Int[Array, ""] | int) -> Particles:
        """What is learned from: weights of all places, mean Z-hat; no evidence is claimed."""
        iterations = self.log_sum.shape[0]
        all_of = pool(*(jax.tree.map(lambda x, i=i: x[i], self.rows) for i in range(iterations)))
        share = jnp.log(iterations / jnp.asarray(t, self.log_sum.dtype))
        log_weights = self.log_weights(t).ravel() + share
        unknown = jnp.full_like(all_of.log_evidence, jnp.nan)
        return eqx.tree_at(
            lambda p: (p.log_weights, p.log_evidence, p.ess),
            all_of,
            (log_weights, unknown, effective_sample_size(log_weights)),
        )


@compiled
def _run(algorithm: AdaptiveMultipleImportance, key: PRNGKeyArray, target: Target) -> Recycled:
    n, iterations, mapping = algorithm.n_particles, algorithm.iterations, algorithm.mapping

    def drawn(t, proposals):
        sampler = shared_sampler(n, proposals, mapping)
        return sampler.population(jax.random.fold_in(key, 2 * t), target)

    def learned(t, particles):
        return algorithm.adapt.proposals(jax.random.fold_in(key, 2 * t + 1), particles)

    def density(proposals, choices):
        """Log gamma and the log density of an iteration's proposals, [M] each."""

        def one(i, x):
            log_gamma, log_q = log_densities(target, proposals, x)
            return log_gamma[-1], log_mean_exp(log_q[-1])

        return mapping.over(one, jnp.arange(jax.tree.leaves(choices)[0].shape[0]), choices)

    begun = drawn(jnp.int32(0), algorithm.start)
    log_gamma, log_q = density(algorithm.start, begun.choices)
    state = jax.tree.map(
        lambda x: jnp.zeros((iterations, *x.shape), x.dtype).at[0].set(x),
        _Drawn(begun, log_gamma, log_q),
    )
    shapes = eqx.filter_eval_shape(learned, jnp.int32(1), state.pooled(1))
    known = jax.tree.map(
        lambda s: jnp.zeros((iterations - 1, *s.shape), s.dtype),
        eqx.filter(shapes, lambda x: isinstance(x, jax.ShapeDtypeStruct)),
    )

    def iteration(carry, t):
        state, known = carry
        proposals = learned(t, state.pooled(t))
        arrays, rest = eqx.partition(proposals, eqx.is_array)
        known = set_row(known, t - 1, arrays)
        new = drawn(t, proposals)

        # The earlier draws under the new proposals, and the new draws under all.
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), state.rows.choices)
        more = density(proposals, flat)[1].reshape(iterations, n)
        before = jnp.arange(iterations)[:, None] < t
        log_sum = jnp.where(before, jnp.logaddexp(state.log_sum, more), state.log_sum)

        log_gamma, first = density(algorithm.start, new.choices)
        later = jax.lax.map(lambda row: density(eqx.combine(row, rest), new.choices)[1], known)
        later = jnp.where(jnp.arange(1, iterations)[:, None] <= t, later, -jnp.inf)
        mixed = jax.nn.logsumexp(jnp.concatenate([first[None], later]), axis=0)
        row = _Drawn(new, log_gamma, mixed)
        state = set_row(_Drawn(state.rows, state.log_gamma, log_sum), t, row)
        return (state, known), None

    steps = jnp.arange(1, iterations, dtype=jnp.int32)
    (state, _), _ = jax.lax.scan(iteration, (state, known), steps)
    choices = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), state.rows.choices)
    log_weights = state.log_weights(iterations).ravel()
    status = _status(state.rows.status, iterations, log_weights)
    return Recycled(
        choices,
        log_weights,
        log_mean_exp(log_weights),
        effective_sample_size(log_weights),
        status,
    )


def _status(rows: Status, iterations: int, log_weights: Float[Array, " n"]) -> Status:
    """The first failure of an iteration, which may die as long as not all do."""
    status = Status.ok(rows.sites)
    for t in range(iterations):
        one = jax.tree.map(lambda x, t=t: x[t], rows)
        status = status.then((one.code != OK) & (one.code != DEAD), one.code, one.step, one.site)
    last = len(rows.sites) - 1
    status = status.then(jnp.any(jnp.isnan(log_weights)), NAN, rows.step[-1], last)
    return status.then(is_dead(log_weights), DEAD, rows.step[-1])
