"""Tempered sequential Monte Carlo for static targets.

Del Moral, Doucet and Jasra (2006), "Sequential Monte Carlo samplers", section 3.3.2; Neal (2001),
"Annealed importance sampling", which is the same without resampling.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ...ppl.algorithm import Algorithm
from ...ppl.code import Code
from ...ppl.compiled import compiled
from ...ppl.partial import Choices
from ...ppl.target import Target, as_target
from ...ppl.trace import Trace
from ..mapping import Mapping, Vmap
from ..mcmc.kernel import Kernel
from ..particles import Particles
from ..resampling import Resampler, Systematic
from .climb import increments, through
from .cloud import finish, thrown
from .mover import Mover
from .reversal import backward, reversal
from .stages import AdaptiveStages, FixedStages, Stages, as_stages
from .wrapped import as_proposal, proposed


class Tempered(Algorithm):
    """A population taken from the prior to the target along prior x likelihood^beta.

    Each stage weighs by likelihood^(beta' - beta), resamples if its resampler wants to, and moves
    every particle once by `kernel` (`Repeat(kernel, k)` for more) with the new target: the
    particles end moved at beta = 1. The likelihood is constraints, observes and factors; choices
    where it is zero die at once.

    - `exponents`: `Linear(20)`, `Power(20, 3.0)`, `Geometric(20, 1e-3)`, an array that ends at 1,
      or `AdaptiveStages(ess=0.5)` (the default).
    - `proposal`: a program that draws free sites instead of the model (with the model's args). The
      path is then q^(1 - beta) gamma^beta at its sites.
    - `tune`: a function tune(kernel, tuning) -> kernel, called before the moves of each stage with
      the population in a `Tuning`, to fit the kernel's scales to it.

    Law: properly weighted with Z-hat unbiased for every exponents fixed in advance, resampler and
    invariant kernel. With adaptive exponents or `tune`: consistent, not unbiased. Status BUDGET:
    `max_stages` were too few; see `AdaptiveStages`.
    """

    n_particles: int = eqx.field(static=True)
    kernel: Kernel
    exponents: Stages = eqx.field(default_factory=AdaptiveStages, converter=as_stages)
    resampler: Resampler | None = eqx.field(default_factory=Systematic)
    proposal: Any = eqx.field(default=None, converter=as_proposal)
    tune: Code | None = eqx.field(default=None, converter=lambda f: None if f is None else Code(f))
    mapping: Mapping = eqx.field(default_factory=Vmap)

    def __check_init__(self):
        if self.n_particles < 1:
            raise ValueError(f"Tempered needs at least one particle, got {self.n_particles}")

    def run(self, key: PRNGKeyArray, target: Any, *, throw: bool = False) -> Particles:
        """The weighted population; histories are by stage. `throw=True`: see `SMC.run`."""
        return thrown(_run(self, key, as_target(target), None), throw)

    def run_conditional(
        self, key: PRNGKeyArray, target: Any, retained: Choices, *, throw: bool = False
    ) -> Particles:
        """The run given that one particle ends with the choices `retained`.

        Law: see `SMC.run_conditional`. The retained particle's past is drawn by the reversed
        kernels. Errors: adaptive exponents, `tune`, a kernel that cannot be reversed.
        """
        self._check_exact()
        return thrown(_run(self, key, as_target(target), retained), throw)

    def random_weighted(self, key: PRNGKeyArray, target: Any) -> tuple[Choices, Float[Array, ""]]:
        """A draw x ~ q (one particle, by weight) and log w = log gamma(x) - log Z-hat.

        As for `SMC.random_weighted`; errors as for `run_conditional`.
        """
        self._check_exact()
        key_run, key_pick = jax.random.split(key)
        target = as_target(target)
        particles = self.run(key_run, target)
        index = particles.pick(key_pick)
        choices = jax.tree.map(lambda x: x[index], particles.choices)
        dead = jnp.isneginf(particles.log_evidence)
        log_gamma = target.log_density(choices)
        evidence = jnp.where(dead, 0.0, particles.log_evidence)
        return choices, jnp.where(dead, jnp.inf, log_gamma - evidence)

    def estimate_logpdf(self, key: PRNGKeyArray, target: Any, choices: Choices) -> Float[Array, ""]:
        """Log w with E[w] = q(x), by a run that retains x; errors as for `run_conditional`."""
        target = as_target(target)
        log_gamma = target.log_density(choices)
        log_evidence = self.run_conditional(key, target, choices).log_evidence
        return jnp.where(jnp.isneginf(log_gamma), -jnp.inf, log_gamma - log_evidence)

    def _check_exact(self) -> None:
        if self.tune is not None or not isinstance(self.exponents, FixedStages):
            raise ValueError(
                "a conditional run (and with it random_weighted and estimate_logpdf) needs "
                "exponents and kernels that do not depend on the particles: instead of "
                "AdaptiveStages give Linear, Power, Geometric or an array, and no tune="
            )
        reversal(self.kernel)


def AnnealedImportance(
    n_particles: int, kernel: Kernel, exponents: Any, proposal: Any = None
) -> Tempered:
    """Annealed importance sampling: `Tempered` that never resamples.

    Law: with fixed exponents the weights are independent and properly weighted, Z-hat unbiased.
    """
    return Tempered(n_particles, kernel, exponents, None, proposal)


@compiled
def _run(
    sampler: Tempered, key: PRNGKeyArray, target: Target, retained: Choices | None
) -> Particles:
    path, stages = proposed(target, sampler.proposal), sampler.exponents
    mover = Mover(sampler.kernel, sampler.resampler, sampler.mapping, sampler.tune)
    past = None
    if retained is not None:
        assert isinstance(stages, FixedStages)
        key, key_past = jax.random.split(key)
        past = backward(key_past, sampler.kernel, path, stages.exponents(), retained)
    cloud = mover.begin(key, path.tempered(0.0), sampler.n_particles, stages.count, _at(past, 0))

    def stage(carry, exponent):
        cloud, _ = carry
        increment, exponent = increments(path, cloud, exponent)
        kept = _at(past, cloud.stage + 1)
        return mover.stage(key, cloud, path.tempered(exponent), increment, exponent, kept), None

    cloud, _ = through(stage, (cloud, None), path, stages)
    return finish(cloud, target)


def _at(traces: Trace | None, index: Any) -> Trace | None:
    return None if traces is None else jax.tree.map(lambda x: x[index], traces)
