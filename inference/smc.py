"""Sequential Monte Carlo as an object: a filter, and a distribution."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray

from ..ppl.algorithm import Algorithm
from ..ppl.compiled import compiled
from ..ppl.errors import EstimatedDensity
from ..ppl.feynman_kac import FeynmanKac
from ..ppl.generative import Request
from ..ppl.partial import Choices
from ..ppl.probe import Probe
from ..ppl.proposal import Proposal
from ..ppl.target import Target, as_target
from ..ppl.twist import AbstractTwist
from .annealing import Annealing
from .batch import over_targets
from .driver import Driver
from .mapping import Mapping, Vmap
from .mcmc.kernel import Kernel
from .particles import Particles
from .record import Record
from .resampling import Resampler, Systematic


class SMC(Algorithm):
    """A particle filter: bootstrap, guided, auxiliary or twisted, annealed, with rejuvenation.

    Law: proper weighting, E[(1/N) sum_i w_i f(x_i)] = Z E_post[f(x)], for every number of
    particles, resampler, threshold, proposal that covers the model's support, twist, annealing that
    keeps its target, and invariant kernel. At each step, in this order: decide, resample (or not),
    propagate, weigh, rejuvenate, record. The population is returned weighted.

    - `resampler`: one of `Multinomial Stratified Systematic Residual SSP Killing` with its
      `ess_threshold`, or None (importance sampling).
    - `twist`, `annealing`: resample by priorities other than the weights, which keep the target.
    - `kernel`: applied to every particle after each step, its target the steps so far; O(t) a step.
    - `record`, `mapping`: what to keep, and how to run over particles.

    A second run with new keys, data, thresholds or temperatures compiles nothing.
    """

    n_particles: int = eqx.field(static=True)
    resampler: Resampler | None = eqx.field(default_factory=Systematic)
    proposal: Proposal | None = None
    twist: AbstractTwist | None = None
    annealing: Annealing | None = None
    kernel: Kernel | None = None
    record: Record = eqx.field(default_factory=Record.choices)
    mapping: Mapping = eqx.field(default_factory=Vmap)

    def __check_init__(self):
        if self.n_particles < 1:
            raise ValueError(f"SMC needs at least one particle, got n_particles={self.n_particles}")
        if self.kernel is not None and not (self.record.with_choices and self.record.fn is None):
            raise ValueError(
                "a rejuvenation kernel rewrites the choices of the past, so it needs them "
                "recorded, and recorded states would be "
                "out of date: use record=Record.choices()"
            )

    def run(self, key: PRNGKeyArray, target: Any, *, throw: bool = False) -> Particles:
        """The weighted population for a target (or a model that needs no args).

        `throw=True` raises `InferenceError` with advice if the status is not ok (on the host, after
        the run).
        """
        return _thrown(_run(self, key, as_target(target), None), throw)

    def run_conditional(
        self, key: PRNGKeyArray, target: Any, retained: Choices, *, throw: bool = False
    ) -> Particles:
        """Conditional SMC: the run given that one particle ends with the choices `retained`.

        Law: draw (x, population) by a posterior draw x and this; then a particle drawn by weight is
        again a posterior draw (N >= 2 to move), and E[1/Z-hat] = 1/Z. `position` is the retained
        particle's final index. If `retained` has weight zero the status says so: no run contains
        it.

        Raises:
            EstimatedDensity: the density of a constrained site is only estimated; the retained
                particle would need the estimate that it was made with, which `ParticleGibbs` keeps.
        """
        if self.kernel is not None:
            raise ValueError(
                "a conditional run is defined without a rejuvenation kernel: use kernel=None"
            )
        target = as_target(target)
        if target.constraints:
            _known_densities(target, retained)
        return _thrown(_run(self, key, target, retained), throw)

    def random_weighted(self, key: PRNGKeyArray, target: Any) -> tuple[Choices, Float[Array, ""]]:
        """A draw x ~ q (one particle, by weight) and log w = log gamma(x) - log Z-hat.

        A dead run gives w = +inf: it stands for no draw.
        """
        key_run, key_pick = jax.random.split(key)
        target = as_target(target)
        particles = self.run(key_run, target)
        index = particles.pick(key_pick)
        choices = jax.tree.map(lambda x: x[index], particles.choices)
        dead = jnp.isneginf(particles.log_evidence)
        log_gamma = target.log_density(choices)
        return choices, jnp.where(
            dead, jnp.inf, log_gamma - jnp.where(dead, 0.0, particles.log_evidence)
        )

    def estimate_logpdf(self, key: PRNGKeyArray, target: Any, choices: Choices) -> Float[Array, ""]:
        """Log w, w = gamma(x) / Z-hat of a run that retains x, with E[w] = q(x)."""
        target = as_target(target)
        log_gamma = target.log_density(choices)
        log_evidence = self.run_conditional(key, target, choices).log_evidence
        return jnp.where(jnp.isneginf(log_gamma), -jnp.inf, log_gamma - log_evidence)

    def driver(self, target: Target, retained: Choices | None = None) -> Driver:
        """The particle filter on this target, step by step."""
        return Driver(
            self.n_particles,
            target,
            FeynmanKac(target, self.proposal, self.twist),
            self.resampler,
            self.annealing,
            self.kernel,
            self.record,
            self.mapping,
            retained,
        )


@compiled
def _run(smc: SMC, key: PRNGKeyArray, target: Target, retained: Choices | None) -> Particles:
    driver = smc.driver(target, retained)
    population = driver.init(key)
    return driver.finish(driver.advance(key, population, jnp.int32(0), driver.length))


def _thrown(particles: Particles, throw: bool) -> Particles:
    if throw and not isinstance(particles.log_evidence, Tracer):
        particles.status.throw()
    return particles


def run_many(smc: SMC, key: PRNGKeyArray, targets: Target, *, throw: bool = False) -> Particles:
    """One run for each of a batch of targets, in one compiled call.

    Args and constraints have a leading batch axis.

    The model (its weights) is shared. Resampling is decided once a step for the batch, when any
    member needs it, and selected for each member: the numbers are those of separate runs with keys
    fold_in(key, i), up to last bits.
    """
    return _thrown(_run_many(smc, key, as_target(targets)), throw)


@compiled
def _run_many(smc: SMC, key: PRNGKeyArray, targets: Target) -> Particles:
    return over_targets(lambda k, target: _run(smc, k, target, None), key, targets)


def _known_densities(target: Target, choices: Choices) -> None:
    """Raise if a constrained site's density is only estimated."""
    request = Request(complete=True, probe=_Constrained(tuple(target.constraints)))

    def run(key, choices):
        model = target.state_space()
        return model.run_to(key, target.joined(choices), target.args, None, request).log_weight

    jax.eval_shape(run, jax.random.key(0), choices)


class _Constrained(Probe):
    names: tuple[str, ...] = eqx.field(static=True)

    def report(self, path, key, d, value, log_prob):
        return None

    def estimated(self, path, d):
        if path[0] in self.names:
            raise EstimatedDensity(
                f"the density of the constrained site {'/'.join(path)!r} is only estimated, and a "
                "conditional run needs the estimate that the retained choices were made with: use "
                "inference.ParticleGibbs or PIMH, which keep it, instead of run_conditional"
            )
