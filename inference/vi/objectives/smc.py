"""The variational SMC bound: E log Z-hat of a particle filter whose proposal is learned.

Naesseth, Linderman, Ranganath and Blei (2018), "Variational sequential Monte Carlo"; Maddison et
al. (2017), "Filtering variational objectives"; Le et al. (2018), "Auto-encoding SMC". Resampling is
multinomial at every step: an adaptive decision would be a jump that no gradient sees.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ....ppl.proposal import Proposal
from ....ppl.target import Target, as_target
from ...resampling import Multinomial
from ...smc import SMC
from .. import nested
from ..context import ObjectiveContext
from ..objective import Objective, objective


def vsmc(n: int) -> Objective:
    """The variational SMC bound of n particles, with unbiased gradients.

    What is drawn has to be reparameterized; the choices of ancestors count by their score, which is
    noisy: give `value_and_grad` a baseline. Arguments (proposal, target): a `ppl.Proposal`.
    """

    @objective
    def vsmc(ctx, proposal, target):
        log_evidence, log_ancestors = _filter(ctx, n, proposal, target)
        ctx.score("ancestors", log_ancestors)
        return log_evidence

    return vsmc


def biased_vsmc(n: int) -> Objective:
    """The same bound, with gradients that leave out the choices of ancestors.

    Biased, at much lower variance: what Naesseth et al. (2018) recommend.
    """

    @objective
    def biased_vsmc(ctx, proposal, target):
        return _filter(ctx, n, proposal, target)[0]

    return biased_vsmc


def _filter(
    ctx: ObjectiveContext, n: int, proposal: Proposal | None, target: Any
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Log Z-hat, and the log-probability of all choices of ancestors."""
    key, target = ctx.key("filter"), as_target(target)
    smc = SMC(n, Multinomial(ess_threshold=1.0), proposal)
    nested.check_draws("the particle filter", target, smc)
    return run(key, smc, target)


def run(key: PRNGKeyArray, smc: SMC, target: Target) -> tuple[Array, Array]:
    """Run a filter with multinomial resampling; see `_filter`."""
    driver = smc.driver(target)
    _, fixed = driver.fk.split(target.constraints)

    def step(carry, t):
        population, log_ancestors = carry
        log_share = jax.nn.log_softmax(population.priority)
        row = jax.tree.map(lambda x: x[t], fixed)
        population = driver.step(jax.random.fold_in(key, t + 1), population, t, row, None)
        drawn = jnp.sum(log_share[population.ancestors[t]])
        return (population, log_ancestors + jnp.where(population.resampled[t], drawn, 0.0)), None

    population = driver.init(key)
    start = (population, jnp.zeros_like(population.log_weights[0]))
    steps = jnp.arange(driver.length, dtype=jnp.int32)
    (population, log_ancestors), _ = jax.lax.scan(step, start, steps)
    return driver.finish(population).log_evidence, log_ancestors
