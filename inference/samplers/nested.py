"""Nested sampling: the evidence as an integral over the prior mass above a likelihood.

Skilling (2006), "Nested sampling for general Bayesian computation"; deletion in batches, with the
live points counted down one by one; equal likelihoods ordered by random labels, as Skilling says,
so that plateaus are right; the error by redrawing the shrinkage (Higson et al. 2018 do the same).
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
from ..resampling import Multinomial, effective_sample_size
from .cloud import NO_CONDITIONAL, Measured, Tuning, thrown
from .mover import Mover
from .traces import draw, length
from .wrapped import Above

_REDRAWN = 100
_SPENT = (
    "max_batches were used up while the live points still mattered: their mass is counted at their "
    "mean likelihood. Give more max_batches, a larger n_delete or a larger tolerance"
)


def _number(x):
    return jnp.asarray(x, dtype=float)


class NestedSampling(Algorithm):
    """Live points climb the likelihood, the worst `n_delete` of them replaced at a time.

    A replacement starts at a survivor drawn at random and moves once by `kernel` under the prior
    restricted to likelihoods above the worst (use `Repeat(kernel, k)` with k large enough to forget
    the start). The run ends when the live points could add at most the fraction `tolerance` to the
    evidence; status BUDGET if `max_batches` come first. The particles are the deleted points in
    order, then the live ones, each with its prior mass times likelihood; room that was not used has
    weight zero.

    Law: consistent as n_live and the kernel's moves grow. It is not unbiased: the prior masses are
    expectations of their logarithms, and the moves are finitely many. `measured` gives the standard
    error of log Z from the shrinkage; it knows nothing of a kernel that does not mix.
    """

    n_live: int = eqx.field(static=True)
    kernel: Kernel
    n_delete: int = eqx.field(static=True, default=1)
    max_batches: int = eqx.field(static=True, default=1000)
    tolerance: Float[Array, ""] = eqx.field(default=1e-3, converter=_number)
    tune: Code | None = eqx.field(default=None, converter=lambda f: None if f is None else Code(f))
    mapping: Mapping = eqx.field(default_factory=Vmap)

    def __check_init__(self):
        if not 1 <= self.n_delete < self.n_live or self.max_batches < 1:
            raise ValueError(
                "NestedSampling deletes at least one of its live points and keeps at least one, in "
                f"at least one batch; got n_live={self.n_live}, n_delete={self.n_delete}, "
                f"max_batches={self.max_batches}"
            )

    def run(self, key: PRNGKeyArray, target: Any, *, throw: bool = False) -> Particles:
        """Deleted and live points, weighted; `log_evidence_history` is by batch, of deleted ones.

        `acceptance` [1] is the kernel's mean rate; there is no genealogy.
        """
        return self.measured(key, target, throw=throw).particles

    def measured(self, key: PRNGKeyArray, target: Any, *, throw: bool = False) -> Measured:
        """The population, and the standard error of its log evidence."""
        result = _run(self, key, as_target(target))
        thrown(result.particles, throw, _SPENT)
        return result

    def run_conditional(self, key, target, retained):
        """An error: nested sampling is not properly weighted."""
        raise NotImplementedError(NO_CONDITIONAL)

    def random_weighted(self, key, target):
        """An error: nested sampling is not properly weighted."""
        raise NotImplementedError(NO_CONDITIONAL)

    def estimate_logpdf(self, key, target, choices):
        """An error: nested sampling is not properly weighted."""
        raise NotImplementedError(NO_CONDITIONAL)


class _Live(eqx.Module):
    """Live points, the deleted ones, and the log prior mass above the last level."""

    traces: Trace
    log_likelihoods: Float[Array, "live"]
    labels: Float[Array, "live"]
    dead: Trace
    dead_likelihoods: Float[Array, "batches deleted"]
    batch: Int[Array, ""]
    log_mass: Float[Array, ""]
    log_evidences: Float[Array, "moves"]
    rates: Float[Array, ""]
    numbers: Any
    status: Status


@compiled
def _run(sampler: NestedSampling, key: PRNGKeyArray, target: Target) -> Measured:
    live, log_possible = _begin(sampler, jax.random.fold_in(key, 0), target)

    def going(live):
        left = live.log_mass + log_mean_exp(live.log_likelihoods)
        found = live.log_evidences[live.batch]
        tolerance = jnp.log(sampler.tolerance).astype(left.dtype)
        more = left - jnp.logaddexp(left, found) > tolerance
        return more & (live.status.code == OK)

    def one(live):
        return _batch(sampler, jax.random.fold_in(key, live.batch + 1), target, live)

    live = jax.lax.while_loop(
        lambda live: going(live) & (live.batch < sampler.max_batches), one, live
    )
    status = live.status.then(going(live), BUDGET, live.batch)
    live = replace(live, status=status)
    return _finish(sampler, jax.random.fold_in(key, 0xFFFFFFFF), target, live, log_possible)


def _begin(
    sampler: NestedSampling, key: PRNGKeyArray, target: Target
) -> tuple[_Live, Float[Array, ""]]:
    """Draws of the prior; those of likelihood zero are replaced by others at once."""
    n, k = sampler.n_live, sampler.n_delete
    key_label, key_fill, key_move, key = jax.random.split(key, 4)
    prior = Target(target.model, target.args, target.constraints)

    def one(i):
        trace, log_weight = draw(jax.random.fold_in(key, i), prior)
        level = jnp.full_like(log_weight, -jnp.inf)
        trace = Above(target, level, jnp.zeros_like(level)).dressed(trace)
        # The weight of the draw is NaN where any density is.
        return trace, jnp.where(jnp.isnan(log_weight), log_weight, trace.retval[1])

    traces, likelihoods = sampler.mapping.over(one, jnp.arange(n, dtype=jnp.int32))
    status = Status.ok((*site_names(traces.log_probs), "an observe or factor"))
    flags = nan_flags(traces.log_probs, likelihoods)
    status = status.then(jnp.any(jnp.isnan(likelihoods)), NAN, -1, jnp.argmax(flags))
    possible = ~jnp.isneginf(likelihoods)
    status = status.then(~jnp.any(possible), DEAD, -1)
    dtype = likelihoods.dtype
    log_possible = jnp.log(jnp.mean(possible.astype(dtype)))
    # The impossible ones start anew from possible ones.
    drawn = Multinomial().ancestors(key_fill, jnp.where(possible, 0.0, -jnp.inf).astype(dtype))
    source = jnp.where(possible, jnp.arange(n, dtype=jnp.int32), drawn)
    filled = jax.tree.map(lambda x: x[source], traces)
    level = jnp.full((), -jnp.inf, dtype)
    mover = Mover(sampler.kernel, None, sampler.mapping, None)
    above = Above(target, level, jnp.zeros((), dtype))
    constrained = Target(above, target.args, target.constraints)
    moved, _ = mover.move(key_move, sampler.kernel, constrained, filled)
    traces = jax.tree.map(
        lambda a, b: jnp.where(possible.reshape(-1, *(1,) * (a.ndim - 1)), a, b), filled, moved
    )
    unknown = jnp.full(sampler.max_batches + 1, jnp.nan, dtype)
    live = _Live(
        traces=traces,
        log_likelihoods=traces.retval[1],
        labels=jax.random.uniform(key_label, (n,), dtype),
        dead=jax.tree.map(
            lambda x: jnp.zeros((sampler.max_batches, k, *x.shape[1:]), x.dtype), traces
        ),
        dead_likelihoods=jnp.full((sampler.max_batches, k), -jnp.inf, dtype),
        batch=jnp.int32(0),
        log_mass=log_possible,
        log_evidences=unknown.at[0].set(-jnp.inf),
        rates=jnp.zeros((), dtype),
        numbers=eqx.filter(sampler.kernel, eqx.is_array),
        status=status,
    )
    return live, log_possible


def _batch(sampler: NestedSampling, key: PRNGKeyArray, target: Target, live: _Live) -> _Live:
    """Delete the lowest and replace them from above."""
    n, k = sampler.n_live, sampler.n_delete
    key_parent, key_move, key_label = jax.random.split(key, 3)
    order = jnp.lexsort((live.labels, live.log_likelihoods))
    worst, kept = order[:k], order[k:]
    level, label = live.log_likelihoods[order[k - 1]], live.labels[order[k - 1]]
    dead, dead_likelihoods = jax.tree.map(lambda x: x[worst], (live.traces, live.log_likelihoods))
    log_widths = live.log_mass + _shrunk(n, k)
    found = jnp.logaddexp(
        live.log_evidences[live.batch], jax.nn.logsumexp(log_widths + dead_likelihoods)
    )

    kernel = eqx.combine(live.numbers, sampler.kernel)
    if sampler.tune is not None:
        rate = live.rates / jnp.maximum(live.batch, 1).astype(live.rates.dtype)
        rate = jnp.where(live.batch > 0, rate, jnp.nan)
        level_weights = jnp.zeros_like(live.log_likelihoods)
        kernel = sampler.tune(kernel, Tuning(live.traces.choices, level_weights, level, rate))
    above = Above(target, level, label)
    constrained = Target(above, target.args, target.constraints)
    parents = kept[jax.random.randint(key_parent, (k,), 0, n - k)]
    starts = jax.tree.map(lambda x: x[parents], live.traces)
    starts = jax.vmap(above.again)(starts)
    mover = Mover(sampler.kernel, None, sampler.mapping, None)
    new, rate = mover.move(key_move, kernel, constrained, starts)
    likelihoods = new.retval[1]
    # Uniform on (0, 1], and of those that tie with the level on what is above its label.
    u = 1 - jax.random.uniform(key_label, (k,), likelihoods.dtype)
    labels = jnp.where(likelihoods == level, label + (1 - label) * u, u)
    wrong = jnp.any(jnp.isnan(likelihoods))
    return _Live(
        traces=jax.tree.map(lambda xs, x: xs.at[worst].set(x), live.traces, new),
        log_likelihoods=live.log_likelihoods.at[worst].set(likelihoods),
        labels=live.labels.at[worst].set(labels),
        dead=set_row(live.dead, live.batch, dead),
        dead_likelihoods=set_row(live.dead_likelihoods, live.batch, dead_likelihoods),
        batch=live.batch + 1,
        log_mass=live.log_mass - _decay(n, k)[-1],
        log_evidences=live.log_evidences.at[live.batch + 1].set(found),
        rates=live.rates + rate,
        numbers=eqx.filter(kernel, eqx.is_array),
        status=live.status.then(wrong, NAN, live.batch, len(live.status.sites) - 1),
    )


def _finish(
    sampler: NestedSampling,
    key: PRNGKeyArray,
    target: Target,
    live: _Live,
    log_possible: Float[Array, ""],
) -> Measured:
    n, k, rows = sampler.n_live, sampler.n_delete, sampler.max_batches
    size = rows * k + n
    used = jnp.arange(rows * k, dtype=jnp.int32) < live.batch * k
    likelihoods = jnp.concatenate([live.dead_likelihoods.ravel(), live.log_likelihoods])

    def weights(decays, log_possible):
        """Log prior mass times likelihood of all points, for log shrinkages [rows k] by point."""
        decays = jnp.where(used, decays, 0.0)
        above = log_possible - jnp.cumsum(decays)
        widths = above + decays + jnp.log(-jnp.expm1(-jnp.where(used, decays, 1.0)))
        widths = jnp.where(used, widths, -jnp.inf)
        left = jnp.broadcast_to(above[-1] - jnp.log(n), (n,))
        widths = jnp.concatenate([widths, left])
        nothing = jnp.isneginf(widths) | jnp.isneginf(likelihoods)
        return jnp.where(nothing, -jnp.inf, widths + likelihoods)

    expected = jnp.tile(1 / (n - jnp.arange(k, dtype=likelihoods.dtype)), rows)
    log_weights = weights(expected, log_possible) + jnp.log(size)

    def redrawn(key):
        decays = jax.random.exponential(key, (rows * k,), likelihoods.dtype) * expected
        return jax.nn.logsumexp(weights(decays, log_possible))

    evidences = jax.lax.map(redrawn, jax.random.split(key, _REDRAWN))
    possible = jnp.exp(log_possible)
    variance = jnp.var(evidences) + (1 - possible) / (possible * n)

    def joined(a, b):
        return jnp.concatenate([a.reshape(-1, *a.shape[2:]), b])

    traces = jax.tree.map(joined, live.dead, live.traces)
    log_evidence = log_mean_exp(log_weights)
    at = jnp.minimum(jnp.arange(rows + 1, dtype=jnp.int32), live.batch)
    particles = Particles(
        choices=traces.choices,
        log_weights=log_weights,
        log_evidence=log_evidence,
        ess=effective_sample_size(log_weights),
        status=live.status,
        ancestors=jnp.arange(size, dtype=jnp.int32)[None],
        resampled=jnp.zeros(1, bool),
        ess_history=jnp.full(rows + 1, jnp.nan, likelihoods.dtype),
        log_evidence_history=live.log_evidences[at].at[-1].set(log_evidence),
        exponents=None,
        acceptance=(live.rates / jnp.maximum(live.batch, 1).astype(live.rates.dtype))[None],
        lengths=jax.vmap(lambda trace: length(target, trace))(traces),
        position=jnp.int32(-1),
        state=traces.retval[0],
        record=None,
    )
    return Measured(particles, jnp.sqrt(variance))


def _decay(n: int, k: int) -> Float[Array, " k"]:
    """Minus the expected log of the prior mass left after 1, ..., k deletions of n live points."""
    return jnp.cumsum(1 / jnp.arange(n, n - k, -1, dtype=float))


def _shrunk(n: int, k: int) -> Float[Array, " k"]:
    """Log of the mass between successive deletions, of a mass of one."""
    step = 1 / jnp.arange(n, n - k, -1, dtype=float)
    return step - jnp.cumsum(step) + jnp.log(-jnp.expm1(-step))
