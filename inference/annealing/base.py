"""What an annealing is: priorities for resampling, from the weights and potentials so far."""

import abc
from typing import ClassVar

import equinox as eqx
from jaxtyping import Array, Float, Int


class Weighted(eqx.Module):
    """What an annealing sees of a population, nats.

    - `log_weights`: the weights, which keep the target.
    - `log_potential`: the sum of the log potentials along each lineage, never reset.
    - `log_priority`: what the population is weighted by at the last exponent, before the last move.
    """

    log_weights: Float[Array, "n"]
    log_potential: Float[Array, "n"]
    log_priority: Float[Array, "n"]


class Annealing(eqx.Module):
    """Says by which priorities v a population is resampled in place of its weights w.

    Law: if `keeps_target`, a particle resampled by v has the weight w / v, so that the run is
    properly weighted for its target under any annealing. Otherwise the weights are dropped and the
    run is a heuristic: its log evidence is NaN.
    """

    keeps_target: ClassVar[bool] = True

    @abc.abstractmethod
    def priority(
        self, weighted: Weighted, t: Int[Array, ""], length: int
    ) -> tuple[Float[Array, "n"], Float[Array, ""]]:
        """Log priorities after t of `length` steps, and the exponent that made them."""
