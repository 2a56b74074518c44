"""Data annealing: one observation (or batch of them) at a time, the posterior becomes the prior.

Chopin (2002), "A sequential particle filter method for static models" (iterated batch importance
sampling).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ...ppl.algorithm import Algorithm
from ...ppl.code import Code
from ...ppl.compiled import compiled
from ...ppl.target import Target, as_target
from ..mapping import Mapping, Vmap
from ..mcmc.kernel import Kernel
from ..particles import Particles
from ..resampling import Resampler, Systematic
from .cloud import NO_CONDITIONAL, finish, thrown
from .mover import Mover
from .traces import log_density, newly_fixed, retrace
from .wrapped import Counted


class DataAnnealing(Algorithm):
    """A population that takes in the data in `batches` equal parts.

    Each part weighs the particles by its density given them; where the effective sample size falls
    below the resampler's threshold they are resampled; then they are moved once by `kernel`, with
    all data so far in its target. `lazy=True` is Chopin's rule: they are moved only where they were
    resampled. Constrained sites are released along their leading instance axis (made by
    `ppl.vmap`, `ppl.scan` or time); observes and factors count from the start. For any other order
    give `at`, a function at(target, t) -> Target of what is known after t of the parts (t is
    traced, 0 to batches): it may change args, or constraints through `ppl.Partial` masks.

    Law: properly weighted, Z-hat unbiased, after every part. With `lazy` or `tune` (see `Tempered`)
    consistent, not unbiased: whether particles are moved, or how, then depends on them.
    `log_evidence_history` [batches + 1] holds log Z-hat of the data so far; its differences are the
    log predictive densities of the parts. One compilation for all parts.
    """

    n_particles: int = eqx.field(static=True)
    kernel: Kernel
    batches: int = eqx.field(static=True)
    resampler: Resampler | None = eqx.field(default_factory=Systematic)
    at: Code | None = eqx.field(default=None, converter=lambda f: None if f is None else Code(f))
    tune: Code | None = eqx.field(default=None, converter=lambda f: None if f is None else Code(f))
    lazy: bool = eqx.field(static=True, default=False)
    mapping: Mapping = eqx.field(default_factory=Vmap)

    def __check_init__(self):
        if self.n_particles < 1 or self.batches < 1:
            raise ValueError(
                "DataAnnealing needs at least one particle and one batch, got "
                f"{self.n_particles} and {self.batches}"
            )

    def run(self, key: PRNGKeyArray, target: Any, *, throw: bool = False) -> Particles:
        """The weighted population given all data; histories are by part."""
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

    def known(self, target: Target, t: Int[Array, ""]) -> Target:
        """The target after t parts of the data."""
        if self.at is not None:
            return self.at(target, t)
        model = Counted(target.model, target.constraints, t, self.batches)
        return Target(model, target.args, target.constraints, target.exponent)


def incremental_log_evidence(particles: Particles) -> Float[Array, " batches"]:
    """Log predictive density of each part of the data given those before it, nats."""
    return jnp.diff(particles.log_evidence_history)


@compiled
def _run(sampler: DataAnnealing, key: PRNGKeyArray, target: Target) -> Particles:
    mover = Mover(sampler.kernel, sampler.resampler, sampler.mapping, sampler.tune, sampler.lazy)
    first = sampler.known(target, jnp.int32(0))
    cloud = mover.begin(key, first, sampler.n_particles, sampler.batches)

    def stage(cloud, t):
        old, new = sampler.known(target, t), sampler.known(target, t + 1)
        key_trace = jax.random.fold_in(jax.random.fold_in(key, t + 1), 0)

        def one(i, trace):
            again = retrace(new, trace.choices, jax.random.fold_in(key_trace, i))
            before = log_density(old, trace) - newly_fixed(trace, old, new)
            return again, log_density(new, again) - before

        indices = jnp.arange(sampler.n_particles, dtype=jnp.int32)
        traces, increments = sampler.mapping.over(one, indices, cloud.traces)
        cloud = eqx.tree_at(lambda c: c.traces, cloud, traces)
        fraction = (t + 1).astype(increments.dtype) / sampler.batches
        return mover.stage(key, cloud, new, increments, fraction), None

    cloud, _ = jax.lax.scan(stage, cloud, jnp.arange(sampler.batches, dtype=jnp.int32))
    return finish(cloud, target)
