"""SMC^2 whose filters get more particles where parameters stop moving.

Chopin, Jacob and Papaspiliopoulos (2013), "SMC^2", section 3.6: when the acceptance rate of the
moves falls, the filter of each parameter is exchanged for one with twice the particles.
"""

from collections.abc import Sequence
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ...ppl.compiled import compiled
from ...ppl.errors import ProgramError
from ..smoothing.backward import categorical
from .estimates import estimated
from .parametric import Parametric
from .pmmh import PMMH
from .smc2 import SMC2, Cloud, ParameterParticles, begun, ended, gained, stepped
from .sweep import traced_back


class Grown(eqx.Module):
    """The population at the end, and how many particles a filter had at each step [length]."""

    particles: ParameterParticles
    n_particles: tuple[int, ...] = eqx.field(static=True)

    @property
    def doublings(self) -> tuple[int, ...]:
        """The steps after which filters were doubled: `doublings` of a run that repeats this."""
        n = self.n_particles
        return tuple(t for t in range(len(n) - 1) if n[t + 1] > n[t])


class GrowingSMC2(eqx.Module):
    """`GrowingSMC2(smc2, least_acceptance, most_particles)`: SMC^2 that doubles its filters.

    After a step whose moves were accepted less often than `least_acceptance` each filter is
    exchanged for one of twice the particles, as long as that is no more than `most_particles`:

    - by a fresh run, parameters then weighing Z-new / Z-old more (as in the paper; noisy where
      the old filter was too small), or
    - `conditional=True`: by a run that retains a path drawn from the old one, which leaves
      the weights as they are. Not where the model has a density that is only estimated.

    Law: *consistent*; as with `SMC2(every=None)` evidence is not unbiased, since whether to
    exchange depends on what is exchanged. Given `doublings`, the steps after which to double
    (0 is the first; decided beforehand, for example by a pilot run's `Grown.doublings`), it is
    properly weighted with unbiased evidence for every number of parameters and particles.

    Shapes are static in a compiled program, so the decision is made on the host: one
    compilation for each number of particles, and `run` cannot be inside jit or vmap unless
    `doublings` are given.
    """

    smc2: SMC2
    least_acceptance: Float[Array, ""]
    most_particles: int = eqx.field(static=True)
    conditional: bool = eqx.field(static=True)
    doublings: tuple[int, ...] | None = eqx.field(static=True)

    def __init__(
        self,
        smc2: SMC2,
        least_acceptance: float = 0.2,
        most_particles: int = 2**14,
        conditional: bool = False,
        doublings: Sequence[int] | None = None,
    ):
        self.smc2, self.most_particles, self.conditional = smc2, most_particles, conditional
        self.least_acceptance = jnp.asarray(least_acceptance, dtype=float)
        self.doublings = None if doublings is None else tuple(sorted({int(t) for t in doublings}))
        if doublings is None and not smc2.moves:
            raise ValueError(
                "whether to double is decided by how often moves are accepted, but there are none: "
                "use SMC2(moves=1) or more, or say when with doublings=[...]"
            )

    def run(self, key: PRNGKeyArray, model: Parametric) -> Grown:
        """The weighted population at the end of the model."""
        if self.doublings is None and isinstance(key, Tracer):
            raise ProgramError(
                "whether to double the filters is decided on the host, from numbers that jit and "
                "vmap do not have. Instead call run outside of them, or say when to double with "
                "doublings=[...]"
            )
        key_start, key_steps, key_end, key_exchange = jax.random.split(key, 4)
        smc2 = self.smc2
        cloud = _begun(smc2, key_start, model)
        length = cloud.resampled.shape[0]
        late = [t for t in self.doublings or () if not 0 <= t < length - 1]
        if late:
            raise ValueError(
                f"doublings={late}, but the model has {length} steps, after which but the last "
                f"filters can be doubled: 0 to {length - 2}"
            )
        counts: list[int] = []
        while len(counts) < length:
            n, start = smc2.pmmh.smc.n_particles, len(counts)
            stop = min([t + 1 for t in self.doublings or () if t >= start], default=length)
            grow = self.doublings is not None or 2 * n <= self.most_particles
            decide = self.doublings is None and grow
            least = self.least_acceptance if decide else jnp.zeros_like(self.least_acceptance)
            between = (jnp.int32(start), jnp.int32(stop))
            cloud, t = _advanced(smc2, key_steps, model, cloud, *between, least)
            end = int(t) if decide else stop
            counts += [n] * (end - start)
            if end < length and grow:
                larger = _doubled(smc2)
                key_now = jax.random.fold_in(key_exchange, end)
                steps = jnp.int32(end)
                cloud = _exchanged(smc2, larger, key_now, model, cloud, steps, self.conditional)
                smc2 = larger
        return Grown(_ended(smc2, key_end, model, cloud), tuple(counts))


def _doubled(smc2: SMC2) -> SMC2:
    smc = smc2.pmmh.smc
    smc = replace(smc, n_particles=2 * smc.n_particles)
    return replace(smc2, pmmh=PMMH(smc, smc2.pmmh.proposal))


_begun, _ended = compiled(begun), compiled(ended)


@compiled
def _advanced(
    smc2: SMC2,
    key: PRNGKeyArray,
    model: Parametric,
    cloud: Cloud,
    start: Int[Array, ""],
    stop: Int[Array, ""],
    least: Float[Array, ""],
) -> tuple[Cloud, Int[Array, ""]]:
    """Steps from `start` to `stop`, or to the first whose acceptance rate is under `least`."""

    def going(carry):
        t, cloud = carry
        before = cloud.acceptance[jnp.maximum(t - 1, 0)]
        return (t < stop) & ~((t > start) & (before < least.astype(before.dtype)))

    def go(carry):
        t, cloud = carry
        return t + 1, stepped(smc2, model, jax.random.fold_in(key, t), t, cloud)

    t, cloud = jax.lax.while_loop(going, go, (start, cloud))
    return cloud, t


@compiled
def _exchanged(
    old: SMC2,
    new: SMC2,
    key: PRNGKeyArray,
    model: Parametric,
    cloud: Cloud,
    steps: Int[Array, ""],
    conditional: bool,
) -> Cloud:
    """The parameters with new filters up to a number of steps."""

    def one(key, filtered):
        if not conditional:
            return new.pmmh.filtered(key, model, filtered.at, None, steps)
        key_path, key_run = jax.random.split(key)
        population, target = filtered.population, model.at(filtered.at.theta)
        last = categorical(key_path, population.log_weights)
        path = traced_back(old.pmmh.smc.driver(target), population, last)
        if estimated(target, path):
            raise ProgramError(
                "a path keeps no estimates of its densities (marginal, normalize), without which a "
                "run cannot retain it: use GrowingSMC2(conditional=False)"
            )
        made = new.pmmh.filtered(key_run, model, filtered.at, path, steps)
        return eqx.tree_at(lambda f: f.population.position, made, jnp.int32(-1))

    filters = jax.vmap(one)(jax.random.split(key, old.n_parameters), cloud.filters)
    if conditional:
        return replace(cloud, filters=filters)
    before, after = cloud.filters.log_evidence, filters.log_evidence
    return replace(cloud, filters=filters, log_weights=gained(cloud.log_weights, before, after))
