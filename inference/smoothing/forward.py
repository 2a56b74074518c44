"""A particle filter's run with what smoothing needs: states, weights and choices as made."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ...ppl.compiled import compiled
from ...ppl.partial import Choices
from ...ppl.status import DEAD, Status
from ...ppl.target import Target, as_target
from ..driver import Driver
from ..particles import log_mean_exp
from ..population import Population
from ..record import Record
from ..resampling import is_dead
from ..smc import SMC
from .stepping import Rows, final_log_weights, run_rows


class Forward(eqx.Module):
    """What a filter did, move by move (move 0 is init, move t + 1 is step t).

    - `states`, `log_weights`: [length + 1, N, ...], the weights before the next resampling.
    - `initial`, `store`: choices of init [N, ...] and of the steps [length, N, ...] as made.
    - `ancestors` [length, N]: parents at step t, indices into move t.
    - `final` [N]: log-weights with what `at_length` says; `log_evidence` their log mean.
    - `status`: how the run ended.
    """

    driver: Driver
    states: PyTree
    log_weights: Float[Array, "moves n"]
    initial: Choices
    store: Choices
    ancestors: Int[Array, "steps n"]
    final: Float[Array, "n"]
    log_evidence: Float[Array, ""]
    status: Status

    @property
    def length(self) -> int:
        """Number of steps."""
        return self.driver.length

    def read(self, indices: Int[Array, "moves"]) -> Choices:
        """The choices of the particles with these indices, one a move."""
        rows = jnp.arange(self.length)
        later = jax.tree.map(lambda x: x[rows, indices[1:]], self.store)
        return {**jax.tree.map(lambda x: x[indices[0]], self.initial), **later}


def forward(key: PRNGKeyArray, smc: SMC, target: Any) -> Forward:
    """Run a particle filter and keep what smoothing needs, O(T N) numbers.

    The same run as `smc.run(key, target)`. The state must have no `Hot` part. A filter with a
    rejuvenation kernel rewrites its past, which is then not what the states came from: an error.
    """
    return _forward(key, filtering(smc), as_target(target))


def filtering(smc: SMC) -> SMC:
    """The filter with its choices recorded; an error if the theory asks for another one."""
    if smc.kernel is not None:
        raise ValueError(
            "smoothing and particle MCMC are defined for a filter without a rejuvenation kernel: "
            "use kernel=None"
        )
    if smc.annealing is not None and not smc.annealing.keeps_target:
        raise ValueError(
            f"{type(smc.annealing).__name__} is a heuristic that changes the target: use an "
            "annealing that keeps it, or none"
        )
    return eqx.tree_at(lambda s: s.record, smc, Record.choices())


@compiled
def _forward(key: PRNGKeyArray, smc: SMC, target: Target) -> Forward:
    driver = smc.driver(target)
    return kept(driver, *run_rows(driver, key))


def kept(driver: Driver, population: Population, rows: Rows, steps: Any = None) -> Forward:
    """What was done, from the population at the end and its rows."""
    final = final_log_weights(driver, population, steps)
    status = population.status.then(is_dead(final), DEAD, driver.length)
    return Forward(
        driver,
        rows.states,
        rows.log_weights,
        population.initial["choices"],
        population.store.get("choices", {}),
        population.ancestors,
        final,
        log_mean_exp(final),
        status,
    )
