"""Importance sampling."""

import equinox as eqx

from ..ppl.algorithm import Algorithm
from ..ppl.proposal import Proposal
from .mapping import Mapping, Vmap
from .record import Record
from .smc import SMC


class Importance(Algorithm):
    """Independent weighted draws from the model, or from a `Proposal` at the sites it names.

    Law: proper weighting; Z-hat, the mean weight, is unbiased. It is `SMC` that never resamples.
    For a program give `Proposal(init=q)`, for a StateSpace `Proposal(step=q)`.
    """

    n_particles: int = eqx.field(static=True)
    proposal: Proposal | None = None
    record: Record = eqx.field(default_factory=Record.choices)
    mapping: Mapping = eqx.field(default_factory=Vmap)

    @property
    def smc(self) -> SMC:
        """The same as a particle filter."""
        return SMC(self.n_particles, None, self.proposal, record=self.record, mapping=self.mapping)

    def run(self, key, target, *, throw=False):
        """The weighted population; see `SMC.run`."""
        return self.smc.run(key, target, throw=throw)

    def run_conditional(self, key, target, retained, *, throw=False):
        """See `SMC.run_conditional`."""
        return self.smc.run_conditional(key, target, retained, throw=throw)

    def random_weighted(self, key, target):
        """Sampling importance resampling as a distribution; see `SMC.random_weighted`."""
        return self.smc.random_weighted(key, target)

    def estimate_logpdf(self, key, target, choices):
        """See `SMC.estimate_logpdf`."""
        return self.smc.estimate_logpdf(key, target, choices)
