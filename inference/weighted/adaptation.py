"""How population Monte Carlo chooses its next proposals from the particles it has."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray

from ...ppl.code import Code
from ...ppl.proposal import Proposal
from ..particles import Particles
from ..resampling import Resampler, Systematic
from .multiple import Sampler
from .scoring import Stacked


class Adaptation(eqx.Module):
    """The proposals of an iteration, as a function of the population of the one before."""

    @abc.abstractmethod
    def proposals(self, key: PRNGKeyArray, particles: Particles) -> tuple[Sampler, ...]:
        """The next proposals; the key is for resampling. The population may be dead."""


class Adapt(Adaptation):
    """`adapt(particles) -> ppl.Proposal`, or a tuple of them, as an `Adaptation`.

    Numbers that change go into the proposal by `ppl.bind`, for example a fitted mean and scale.
    """

    adapt: Code

    def __init__(self, adapt: Callable[[Particles], Any]):
        self.adapt = adapt if isinstance(adapt, Code) else Code(adapt)

    def proposals(self, key, particles):
        """See `Adaptation.proposals`."""
        chosen = self.adapt(particles)
        return chosen if isinstance(chosen, tuple) else (chosen,)


class Locations(Adaptation):
    """Particles resampled by weight are the locations of the next proposals' components.

    Component k is `kernel` bound to the choices of location k: `kernel = ppl.Proposal(init=f)` with
    `f(ctx, location, *args)`, for a StateSpace `step(ctx, location, state, t, ...)` as
    `Proposal(step).bind` orders it. Every component draws equally often and every draw is weighed
    by the mixture of all: deterministic-mixture population Monte Carlo (Elvira, Martino, Luengo
    and Bugallo 2017, "Improving population Monte Carlo: alternative weighting and resampling
    schemes"). `extra` are components beside them, for example None, the model.
    """

    kernel: Proposal
    resampler: Resampler = eqx.field(default_factory=Systematic)
    extra: tuple[Sampler, ...] = eqx.field(default=(), converter=tuple)

    def proposals(self, key, particles):
        """See `Adaptation.proposals`."""
        index = self.resampler.ancestors(key, particles.log_weights)
        locations = jax.tree.map(lambda x: x[index], particles.choices)
        return (Stacked(self.kernel, locations), *self.extra)
