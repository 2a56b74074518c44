"""One run of a filter and one path out of it: what particle MCMC is made of.

Andrieu, Doucet and Holenstein (2010), "Particle Markov chain Monte Carlo methods". Ancestor
sampling: Lindsten, Jordan and Schon (2014), "Particle Gibbs with ancestor sampling", section 3. For
any unbiased resampler and adaptive resampling it is one step: which particle the retained future is
attached to is drawn before each resampling, with probabilities proportional to
w_i gamma(x_i, future) / gamma(x_i); the conditional resampler then gives that one an offspring.
Its law follows from the extended target: summed over ancestors a and slots b with a[b] = i, the
probability r(a | W) is n W_i.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ...ppl.errors import ProgramError
from ...ppl.partial import Choices
from ...ppl.status import DEAD, NAN, UNSUPPORTED, Status
from ...ppl.target import Target
from ..driver import Driver
from ..particles import log_mean_exp
from ..resampling import is_dead
from ..smc import SMC
from ..smoothing.backward import Exact, categorical, drawn_path
from ..smoothing.forward import filtering, kept
from ..smoothing.futures import log_future_ratios
from ..smoothing.stepping import final_log_weights, run_rows, run_steps
from .estimates import remembering

# The key of a step beside those of its particles and of the driver (0xFFFFFFFD and above).
_ANCESTOR = 0xFFFFFFFC


class Sweep(eqx.Module):
    """A path drawn from a filter's run, by weight; log Z-hat, and how the run ended.

    `log_probs` are the path's log densities as it was made, None unless asked for.
    """

    choices: Choices
    log_evidence: Float[Array, ""]
    status: Status
    log_probs: Any = None


def sweep(
    key: PRNGKeyArray,
    smc: SMC,
    target: Target,
    retained: Choices | None = None,
    steps: Int[Array, ""] | None = None,
    ancestor_sampling: bool = False,
    backward_sampling: bool = False,
    remember: Any = None,
) -> Sweep:
    """Run a filter, conditional on a path if one is `retained`, and draw a path.

    With `steps` on the model's first so many steps, without `at_length`. Where a density is only
    estimated `remember` holds the log densities that the retained path was made with ({} if none
    is retained), and those of the path drawn are returned.
    """
    key_run, key_path = jax.random.split(key)
    if remember is None:
        driver = filtering(smc).driver(target, retained)
    elif ancestor_sampling or backward_sampling:
        raise ProgramError(
            "ancestor and backward sampling weigh a future after pasts other than its own, where "
            "an estimated density (marginal, normalize) would have another estimate. Instead use "
            "ParticleGibbs(smc) without them and with more particles, or MH(selection)"
        )
    else:
        driver = remembering(smc, target, retained, remember)
    before = None
    if ancestor_sampling and retained is not None and driver.length > 0:
        before = Ancestor(driver, retained, steps)
    if backward_sampling:
        population, rows = run_rows(driver, key_run, steps, before)
        forward = kept(driver, population, rows, steps)
        choices, _, _ = drawn_path(key_path, forward, Exact(), steps)
        final, log_probs = forward.final, None
    else:
        population = run_steps(driver, key_run, steps, before)
        final = final_log_weights(driver, population, steps)
        last = categorical(key_path, final)
        choices, log_probs = traced_back(driver, population, last), None
        if remember is not None:
            log_probs = traced_back(driver, population, last, "log_probs")
    status = population.status
    if retained is not None:
        status = status.then(jnp.isneginf(final[population.position]), UNSUPPORTED, driver.length)
    status = status.then(is_dead(final), DEAD, driver.length)
    return Sweep(choices, log_mean_exp(final), status, log_probs)


class Ancestor:
    """Before each step: draw which particle the retained future is attached to."""

    def __init__(self, driver: Driver, retained: Choices, steps: Any):
        self.driver, self.whole = driver, steps is None
        self.stop = driver.length if steps is None else jnp.minimum(steps, driver.length)
        self.future = driver.fk.split(retained)[1]

    def __call__(self, key, population, t):
        """The population with the retained position drawn anew; as it is where that has no law."""
        log_weights, position = population.log_weights, population.position
        alive = ~jnp.isneginf(log_weights)
        inside = jnp.clip(position, 0, self.driver.n_particles - 1)
        ratios = log_future_ratios(
            self.driver, population.state, inside, alive, self.future, t, self.stop, self.whole
        )
        weights = jnp.where(alive, log_weights + ratios, -jnp.inf)
        wrong = jnp.isnan(weights) | jnp.isposinf(weights)
        supported = (position >= 0) & ~jnp.isneginf(weights[inside])
        drawn = categorical(jax.random.fold_in(key, _ANCESTOR), weights)
        position = jnp.where(supported & ~jnp.any(wrong), drawn, position)
        status = population.status
        # Where the retained future itself has density zero the step will say so.
        bad = jnp.any(jnp.isnan(weights)) & supported & ~jnp.isnan(ratios[inside])
        status = status.then(bad, NAN, t, len(status.sites) - 1)
        return eqx.tree_at(lambda p: (p.position, p.status), population, (position, status))


def traced_back(
    driver: Driver, population: Any, last: Int[Array, ""], what: str = "choices"
) -> Choices:
    """The choices (or what else is stored) along one lineage."""
    initial = population.initial[what]
    if driver.length == 0:
        return jax.tree.map(lambda x: x[last], initial)

    def back(index, row):
        parents, made = row
        return parents[index], jax.tree.map(lambda x: x[index], made)

    rows = (population.ancestors, population.store[what])
    first, later = jax.lax.scan(back, last, rows, reverse=True)
    return {**jax.tree.map(lambda x: x[first], initial), **later}
