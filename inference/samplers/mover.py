"""One stage of a sampler on a path of targets: weigh, resample, move.

Del Moral, Doucet and Jasra (2006), "Sequential Monte Carlo samplers", with kernels that leave each
stage's target invariant and, in the weights, their reversals as backward kernels.
"""

from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ...ppl.code import Code
from ...ppl.combinators.branches import any_member
from ...ppl.status import DEAD, NAN, UNSUPPORTED, Status
from ...ppl.target import Target
from ...ppl.trace import Trace
from ..mapping import Mapping
from ..mcmc.kernel import Chain, Kernel
from ..particles import log_mean_exp
from ..population import nan_flags, site_names
from ..resampling import Resampler, effective_sample_size, is_dead
from .cloud import Cloud, Tuning
from .traces import draw, log_likelihood

_POSITION, _RESAMPLE, _MOVE = 0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFFD


class Mover(eqx.Module):
    """How populations are weighed, resampled and moved, on any path of targets.

    `lazy`: move only where the population was resampled; that keeps the target only as N grows,
    because the decision depends on the particles. A `retained` trace is what one particle
    of a conditional run is made to be.
    """

    kernel: Kernel
    resampler: Resampler | None
    mapping: Mapping
    tune: Code | None
    lazy: bool = eqx.field(static=True, default=False)

    def begin(
        self,
        key: PRNGKeyArray,
        target: Target,
        n: int,
        stages: int,
        retained: Trace | None = None,
    ) -> Cloud:
        """The population drawn for the first target of a path."""
        key = jax.random.fold_in(key, 0)

        def one(i):
            return draw(jax.random.fold_in(key, i), target)

        traces, log_weights = self.mapping.over(one, jnp.arange(n, dtype=jnp.int32))
        position = jnp.int32(-1)
        if retained is not None:
            key_position = jax.random.fold_in(key, _POSITION)
            position = jax.random.randint(key_position, (), 0, n, dtype=jnp.int32)
            weight = log_likelihood(target, retained)
            traces, log_weights = _put((traces, log_weights), position, (retained, weight))
        status = Status.ok((*site_names(traces.log_probs), "an observe or factor"))
        status = _checked(status, traces, log_weights, position, -1)
        unknown = jnp.full(stages + 1, jnp.nan, log_weights.dtype)
        return Cloud(
            traces=traces,
            log_weights=log_weights,
            exponent=jnp.zeros((), log_weights.dtype),
            stage=jnp.int32(0),
            position=position,
            status=status,
            numbers=eqx.filter(self.kernel, eqx.is_array),
            ancestors=jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32), (stages, n)),
            resampled=jnp.zeros(stages, bool),
            acceptance=unknown[1:],
            ess_history=unknown.at[0].set(effective_sample_size(log_weights)),
            log_evidence_history=unknown.at[0].set(log_mean_exp(log_weights)),
            exponents=unknown.at[0].set(0.0),
        )

    def stage(
        self,
        key: PRNGKeyArray,
        cloud: Cloud,
        target: Target,
        log_increments: Float[Array, "n"],
        exponent: Float[Array, ""],
        retained: Trace | None = None,
    ) -> Cloud:
        """One stage, ending with moves that leave `target` invariant."""
        key = jax.random.fold_in(key, cloud.stage + 1)
        key_resample, key_move = (jax.random.fold_in(key, i) for i in (_RESAMPLE, _MOVE))
        cloud = weigh(cloud, log_increments, exponent)
        kernel = self.tuned(cloud)
        traces, log_weights, position, ancestors, wanted = self._resampled(
            key_resample, cloud, retained is not None
        )

        def moved(traces):
            return self.move(key_move, kernel, target, traces)

        def still(traces):
            return traces, jnp.full((), jnp.nan, log_weights.dtype)

        if self.lazy:
            new = jax.lax.cond(any_member(wanted), moved, still, traces)
            traces, rate = jax.tree.map(lambda a, b: jnp.where(wanted, a, b), new, still(traces))
        else:
            traces, rate = moved(traces)
        if retained is not None:
            traces = _put(traces, position, retained)
        s = cloud.stage
        return replace(
            cloud,
            traces=traces,
            log_weights=log_weights,
            stage=s + 1,
            position=position,
            numbers=eqx.filter(kernel, eqx.is_array),
            ancestors=cloud.ancestors.at[s].set(ancestors),
            resampled=cloud.resampled.at[s].set(wanted),
            acceptance=cloud.acceptance.at[s].set(rate),
        )

    def tuned(self, cloud: Cloud) -> Kernel:
        """The kernel for the next moves."""
        kernel = eqx.combine(cloud.numbers, self.kernel)
        if self.tune is None:
            return kernel
        rate = jnp.where(cloud.stage > 0, cloud.acceptance[cloud.stage - 1], jnp.nan)
        return self.tune(
            kernel, Tuning(cloud.traces.choices, cloud.log_weights, cloud.exponent, rate)
        )

    def move(
        self, key: PRNGKeyArray, kernel: Kernel, target: Target, traces: Trace
    ) -> tuple[Trace, Float[Array, ""]]:
        """One move of every trace, and the mean acceptance rate."""

        def one(i, trace):
            chain = Chain(trace, None, jnp.zeros(()))
            new = kernel.move(jax.random.fold_in(key, i), target, chain, None)
            return new.trace, new.acceptance

        indices = jnp.arange(jnp.shape(traces.score)[0], dtype=jnp.int32)
        traces, rates = self.mapping.over(one, indices, traces)
        return traces, jnp.mean(rates)

    def _resampled(self, key, cloud: Cloud, conditional: bool):
        log_weights, position = cloud.log_weights, cloud.position
        identity = jnp.arange(log_weights.shape[0], dtype=jnp.int32)
        if self.resampler is None:
            return cloud.traces, log_weights, position, identity, jnp.zeros((), bool)
        wanted = self.resampler.needed(log_weights)
        if conditional:
            ancestors, new = self.resampler.conditional(key, log_weights, position)
            position = jnp.where(wanted, new, position)
        else:
            ancestors = self.resampler.ancestors(key, log_weights)
        ancestors = jnp.where(wanted, ancestors, identity)
        log_weights = jnp.where(wanted, log_mean_exp(log_weights), log_weights)
        traces = self.mapping.place(jax.tree.map(lambda x: x[ancestors], cloud.traces))
        return traces, log_weights, position, ancestors, wanted


def weigh(cloud: Cloud, log_increments: Float[Array, "n"], exponent: Float[Array, ""]) -> Cloud:
    """The cloud with its weights raised to the next target of the path."""
    alive, s = ~jnp.isneginf(cloud.log_weights), cloud.stage
    log_weights = jnp.where(alive, cloud.log_weights + log_increments, -jnp.inf)
    exponent = exponent.astype(log_weights.dtype)
    return replace(
        cloud,
        log_weights=log_weights,
        exponent=exponent,
        status=_checked(cloud.status, cloud.traces, log_weights, cloud.position, s),
        ess_history=cloud.ess_history.at[s + 1].set(effective_sample_size(log_weights)),
        log_evidence_history=cloud.log_evidence_history.at[s + 1].set(log_mean_exp(log_weights)),
        exponents=cloud.exponents.at[s + 1].set(exponent),
    )


def _checked(status: Status, traces, log_weights, position, stage) -> Status:
    flags = nan_flags(traces.log_probs, log_weights)
    status = status.then(jnp.any(jnp.isnan(log_weights)), NAN, stage, jnp.argmax(flags))
    lost = (position >= 0) & jnp.isneginf(log_weights[position])
    return status.then(lost, UNSUPPORTED, stage).then(is_dead(log_weights), DEAD, stage)


def _put(batch: Any, position: Int[Array, ""], one: Any) -> Any:
    return jax.tree.map(lambda xs, x: xs.at[position].set(x.astype(xs.dtype)), batch, one)
