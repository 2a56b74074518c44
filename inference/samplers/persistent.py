"""Persistent sampling: no particle of any stage is thrown away.

Karamanis and Seljak (2025), "Persistent Sampling: Enhancing the Efficiency of Sequential Monte
Carlo", Algorithm 2: the particles of all stages so far are an importance sample from the mixture
of their targets (equations 14-16), from which the next stage is resampled.
"""

from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ...ppl.algorithm import Algorithm
from ...ppl.code import Code
from ...ppl.compiled import compiled
from ...ppl.status import BUDGET, DEAD, NAN, OK, Status
from ...ppl.target import Target, as_target
from ...ppl.trace import Trace
from ..mapping import Mapping, Vmap
from ..mcmc.kernel import Kernel
from ..particles import Particles, log_mean_exp
from ..population import nan_flags, set_row, site_names
from ..resampling import Resampler, Systematic, effective_sample_size, is_dead
from .cloud import NO_CONDITIONAL, Tuning, thrown
from .mover import Mover
from .stages import AdaptiveStages, FixedStages, Stages, as_stages, limit
from .traces import draw, length, log_likelihood
from .waste_free import thinned
from .wrapped import as_proposal, proposed


class Persistent(Algorithm):
    """`Tempered` that reuses the particles of all stages, weighed as draws from their mixture.

    `n_particles` are drawn at each stage, so that the result has n_particles (stages + 1), the
    prior's draws first; with `AdaptiveStages` n_particles (max_stages + 1), those of unused stages
    with weight zero. `AdaptiveStages(ess=a)` takes the exponent at which the whole ensemble has
    an effective size of a n_particles; a may be above 1 (the sampler then stays at an exponent
    until it has collected enough). Memory grows with the number of stages.

    Law: consistent; Z-hat is not unbiased, because earlier estimates are in the mixture's weights.
    """

    n_particles: int = eqx.field(static=True)
    kernel: Kernel
    exponents: Stages = eqx.field(default_factory=AdaptiveStages, converter=as_stages)
    resampler: Resampler = eqx.field(default_factory=Systematic)
    proposal: Any = eqx.field(default=None, converter=as_proposal)
    tune: Code | None = eqx.field(default=None, converter=lambda f: None if f is None else Code(f))
    mapping: Mapping = eqx.field(default_factory=Vmap)

    def __check_init__(self):
        if self.n_particles < 1:
            raise ValueError(f"Persistent needs at least one particle, got {self.n_particles}")
        if isinstance(self.exponents, AdaptiveStages) and self.exponents.ess is None:
            raise ValueError(
                "Persistent measures its ensemble by effective sample size: instead of cess= give "
                "AdaptiveStages(ess=...)"
            )

    def run(self, key: PRNGKeyArray, target: Any, *, throw: bool = False) -> Particles:
        """The weighted ensemble; `ancestors` index into it, histories are by stage."""
        return thrown(_run(self, key, as_target(target)), throw)

    def run_conditional(self, key, target, retained):
        """An error: not built."""
        raise NotImplementedError(NO_CONDITIONAL)

    def random_weighted(self, key, target):
        """An error: not built."""
        raise NotImplementedError(NO_CONDITIONAL)

    def estimate_logpdf(self, key, target, choices):
        """An error: not built."""
        raise NotImplementedError(NO_CONDITIONAL)


class _Ensemble(eqx.Module):
    """Rows of `count` generations; `log_mixture` is the log of the sum over their densities.

    A generation's density relative to the prior is L^beta / Z(beta).
    """

    traces: Trace
    log_likelihoods: Float[Array, "rows n"]
    log_mixture: Float[Array, "rows n"]
    count: Int[Array, ""]
    exponent: Float[Array, ""]
    exponents: Float[Array, "rows"]
    log_evidences: Float[Array, "rows"]
    ess: Float[Array, "rows"]
    parents: Int[Array, "rows n"]
    acceptance: Float[Array, "stages"]
    numbers: Any
    status: Status

    def log_weights(self, exponent: Float[Array, ""]) -> Float[Array, "rows n"]:
        """Weights of the ensemble towards prior x L^exponent, with mean Z over the rows so far."""
        rows = jnp.arange(self.log_likelihoods.shape[0], dtype=jnp.int32)[:, None]
        counted = (rows < self.count) & ~jnp.isneginf(self.log_likelihoods)
        likelihoods = jnp.where(counted, self.log_likelihoods, 0.0)
        mixture = jnp.where(counted, self.log_mixture, 0.0)
        log_count = jnp.log(self.count.astype(likelihoods.dtype))
        return jnp.where(counted, exponent * likelihoods - mixture + log_count, -jnp.inf)

    def log_evidence(self, log_weights: Float[Array, "rows n"]) -> Float[Array, ""]:
        """Log of the mean weight over the rows so far."""
        n = self.count.astype(log_weights.dtype) * log_weights.shape[1]
        return jax.nn.logsumexp(log_weights) - jnp.log(n)


@compiled
def _run(sampler: Persistent, key: PRNGKeyArray, target: Target) -> Particles:
    path, stages = proposed(target, sampler.proposal), sampler.exponents
    mover = Mover(sampler.kernel, sampler.resampler, sampler.mapping, sampler.tune)
    ensemble = _begin(sampler, key, path)
    if isinstance(stages, FixedStages):

        def one(ensemble, exponent):
            return _stage(sampler, mover, key, ensemble, path, exponent), None

        ensemble, _ = jax.lax.scan(one, ensemble, stages.exponents())
    else:
        assert isinstance(stages, AdaptiveStages)
        ensemble = _adapted(sampler, mover, key, ensemble, path, stages)
    return _finish(ensemble, target)


def _begin(sampler: Persistent, key: PRNGKeyArray, path: Target) -> _Ensemble:
    n, rows = sampler.n_particles, sampler.exponents.count + 1
    key = jax.random.fold_in(key, 0)

    def one(i):
        return draw(jax.random.fold_in(key, i), path)

    traces, log_likelihoods = sampler.mapping.over(one, jnp.arange(n, dtype=jnp.int32))

    def room(x):
        return jnp.zeros((rows, *x.shape), x.dtype).at[0].set(x)

    dtype = log_likelihoods.dtype
    ess = effective_sample_size(jnp.where(jnp.isneginf(log_likelihoods), -jnp.inf, 0.0))
    status = Status.ok((*site_names(traces.log_probs), "an observe or factor"))
    identity = jnp.arange(rows * n, dtype=jnp.int32).reshape(rows, n)
    return _Ensemble(
        traces=jax.tree.map(room, traces),
        log_likelihoods=room(log_likelihoods),  # the weight of a draw from the prior
        log_mixture=jnp.zeros((rows, n), dtype),
        count=jnp.int32(1),
        exponent=jnp.zeros((), dtype),
        exponents=jnp.zeros(rows, dtype),
        log_evidences=jnp.zeros(rows, dtype),
        ess=jnp.full(rows, jnp.nan, dtype).at[0].set(ess),
        parents=identity,
        acceptance=jnp.full(rows - 1, jnp.nan, dtype),
        numbers=eqx.filter(sampler.kernel, eqx.is_array),
        status=_checked(status, traces, log_likelihoods, jnp.int32(-1)),
    )


def _adapted(
    sampler: Persistent,
    mover: Mover,
    key: PRNGKeyArray,
    ensemble: _Ensemble,
    path: Target,
    stages: AdaptiveStages,
) -> _Ensemble:
    def going(ensemble):
        more = (ensemble.exponent < 1) & (ensemble.count <= stages.max_stages)
        return more & (ensemble.status.code == OK)

    def one(ensemble):
        def fits(exponent):
            size = effective_sample_size(ensemble.log_weights(exponent).ravel())
            assert stages.ess is not None
            return size >= stages.ess.astype(size.dtype) * sampler.n_particles

        start = ensemble.exponent
        whole = jnp.ones_like(start)
        last = ensemble.count >= stages.max_stages
        exponent = jnp.where(last, whole, limit(fits, start))
        new = _stage(sampler, mover, key, ensemble, path, exponent)
        status = new.status.then(last & ~fits(whole), BUDGET, ensemble.count)
        return replace(new, status=status)

    return jax.lax.while_loop(going, one, ensemble)


def _stage(
    sampler: Persistent,
    mover: Mover,
    key: PRNGKeyArray,
    ensemble: _Ensemble,
    path: Target,
    exponent: Float[Array, ""],
) -> _Ensemble:
    """One more generation: weigh and resample the ensemble, move what was drawn."""
    n, row = sampler.n_particles, ensemble.count
    exponent = exponent.astype(ensemble.exponent.dtype)
    key_resample, key_move = jax.random.split(jax.random.fold_in(key, row))
    log_weights = ensemble.log_weights(exponent)
    log_evidence = ensemble.log_evidence(log_weights)
    flat = log_weights.ravel()
    status = _checked(ensemble.status, ensemble.traces, flat, row - 1)
    parents = thinned(key_resample, sampler.resampler, flat, n)
    everything = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), ensemble.traces)
    kernel = eqx.combine(ensemble.numbers, sampler.kernel)
    if sampler.tune is not None:
        rate = jnp.where(row > 1, ensemble.acceptance[row - 2], jnp.nan)
        kernel = sampler.tune(kernel, Tuning(everything.choices, flat, exponent, rate))
    traces = jax.tree.map(lambda x: x[parents], everything)
    traces, rate = mover.move(key_move, kernel, path.tempered(exponent), traces)
    log_likelihoods = jax.vmap(lambda trace: log_likelihood(path, trace))(traces)
    exponents = ensemble.exponents.at[row].set(exponent)
    log_evidences = ensemble.log_evidences.at[row].set(log_evidence)

    def density(likelihoods, exponent, log_evidence):
        known = jnp.where(jnp.isneginf(likelihoods), 0.0, likelihoods)
        return exponent * known - log_evidence

    old = jnp.logaddexp(
        ensemble.log_mixture, density(ensemble.log_likelihoods, exponent, log_evidence)
    )
    each = jax.vmap(lambda e, z: density(log_likelihoods, e, z))(exponents, log_evidences)
    rows = jnp.arange(exponents.shape[0], dtype=jnp.int32)[:, None]
    mixture = jax.nn.logsumexp(jnp.where(rows <= row, each, -jnp.inf), axis=0)
    return _Ensemble(
        traces=set_row(ensemble.traces, row, traces),
        log_likelihoods=ensemble.log_likelihoods.at[row].set(log_likelihoods),
        log_mixture=old.at[row].set(mixture),
        count=row + 1,
        exponent=exponent,
        exponents=exponents,
        log_evidences=log_evidences,
        ess=ensemble.ess.at[row].set(effective_sample_size(flat)),
        parents=ensemble.parents.at[row].set(parents),
        acceptance=ensemble.acceptance.at[row - 1].set(rate),
        numbers=eqx.filter(kernel, eqx.is_array),
        status=status,
    )


def _finish(ensemble: _Ensemble, target: Target) -> Particles:
    rows, n = ensemble.log_likelihoods.shape
    log_weights = ensemble.log_weights(jnp.ones_like(ensemble.exponent)).ravel()
    # The mean over all rows, used or not, is the evidence.
    log_weights += jnp.log(rows / ensemble.count.astype(log_weights.dtype))
    traces = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), ensemble.traces)
    index = jnp.arange(rows * n, dtype=jnp.int32)
    born = jnp.arange(1, rows, dtype=jnp.int32)[:, None] == (index // n)[None]
    used = jnp.minimum(jnp.arange(rows, dtype=jnp.int32), ensemble.count - 1)
    return Particles(
        choices=traces.choices,
        log_weights=log_weights,
        log_evidence=log_mean_exp(log_weights),
        ess=effective_sample_size(log_weights),
        status=ensemble.status.then(is_dead(log_weights), DEAD, ensemble.count - 1),
        ancestors=jnp.where(born, ensemble.parents.reshape(1, -1), index[None]),
        resampled=jnp.arange(1, rows, dtype=jnp.int32) < ensemble.count,
        ess_history=ensemble.ess[used],
        log_evidence_history=ensemble.log_evidences[used],
        exponents=ensemble.exponents[used],
        acceptance=ensemble.acceptance,
        lengths=jax.vmap(lambda trace: length(target, trace))(traces),
        position=jnp.int32(-1),
        state=traces.retval,
        record=None,
    )


def _checked(
    status: Status, traces: Trace, log_weights: Float[Array, "n"], stage: Int[Array, ""]
) -> Status:
    flags = nan_flags(traces.log_probs, log_weights)
    status = status.then(jnp.any(jnp.isnan(log_weights)), NAN, stage, jnp.argmax(flags))
    return status.then(is_dead(log_weights), DEAD, stage)
