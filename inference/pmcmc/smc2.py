"""SMC^2: particles of parameters, each with a particle filter of its own.

Chopin, Jacob and Papaspiliopoulos (2013), "SMC^2: an efficient algorithm for sequential analysis of
state-space models", section 3.1. The exchange step, which changes the number of particles, is in
`exchange`.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ...ppl.combinators.branches import any_member
from ...ppl.compiled import compiled
from ...ppl.partial import Choices
from ...ppl.status import DEAD, NAN, Status
from ..particles import log_mean_exp
from ..resampling import Resampler, Systematic, effective_sample_size, is_dead
from ..smoothing.forward import filtering
from ..smoothing.stepping import final_log_weights, step
from .parametric import Parametric
from .pmmh import PMMH, Filtered


class ParameterParticles(eqx.Module):
    """A properly weighted population of parameters and paths, leading axis M.

    E[(1/M) sum_m w_m f(theta_m, x_m)] = Z E_post[f]; `choices` holds both, the path x_m drawn from
    theta_m's filter. `log_evidence` = logsumexp(log_weights) - log M; `ess_history` and
    `log_evidence_history` [length + 1] after init and each step; `acceptance` [length] that of the
    moves, NaN where there were none.
    """

    choices: Choices
    log_weights: Float[Array, "m"]
    log_evidence: Float[Array, ""]
    ess: Float[Array, ""]
    status: Status
    ess_history: Float[Array, "moves"]
    log_evidence_history: Float[Array, "moves"]
    resampled: Bool[Array, "steps"]
    acceptance: Float[Array, "steps"]

    @property
    def weights(self) -> Float[Array, "m"]:
        """Normalised weights."""
        return jax.nn.softmax(self.log_weights)

    def expectation(self, f: Any) -> PyTree:
        """sum_m W_m f(choices_m): consistent, not unbiased."""
        w = self.weights

        def mean(x):
            shaped = w.reshape((-1,) + (1,) * (x.ndim - 1))
            return jnp.sum(jnp.where(shaped > 0, shaped * x.astype(w.dtype), 0.0), axis=0)

        return jax.tree.map(mean, jax.vmap(f)(self.choices))


class SMC2(eqx.Module):
    """`SMC2(n_parameters, pmmh, resampler, moves, every)`: filters in step, parameters reweighted.

    After each step parameters weigh by how well their filter predicted; when the effective size
    falls under the resampler's threshold they are resampled. At every `every`-th step they are
    moved by `pmmh` (whose filter is the one run) `moves` times, each a new filter from the start:
    O(t).

    Law: proper weighting for the gamma(theta, x) of a `Parametric`, unbiased evidence, for every
    number of parameters and of particles. With `every=None` they are moved only where they were
    resampled, as in the paper: cheaper, and consistent, but not unbiased, since whether to move
    then depends on the parameters that are moved.
    """

    n_parameters: int = eqx.field(static=True)
    pmmh: PMMH
    resampler: Resampler = eqx.field(default_factory=Systematic)
    moves: int = eqx.field(static=True, default=1)
    every: Int[Array, ""] | None = eqx.field(
        default=1, converter=lambda x: x if x is None else jnp.asarray(x, jnp.int32)
    )

    def __check_init__(self):
        if self.n_parameters < 1 or self.moves < 0:
            raise ValueError(
                "SMC2 needs at least one parameter particle and no negative number of moves, got "
                f"{self.n_parameters} and {self.moves}"
            )

    def run(self, key: PRNGKeyArray, model: Parametric) -> ParameterParticles:
        """The weighted population at the end of the model."""
        return _run(self, key, model)


class Cloud(eqx.Module):
    """Parameters with their filters [M, ...], and what is kept over time."""

    filters: Filtered
    log_weights: Float[Array, "m"]
    status: Status
    ess: Float[Array, "moves"]
    log_evidence: Float[Array, "moves"]
    resampled: Bool[Array, "steps"]
    acceptance: Float[Array, "steps"]


@compiled
def _run(smc2: SMC2, key: PRNGKeyArray, model: Parametric) -> ParameterParticles:
    key_start, key_steps, key_end = jax.random.split(key, 3)
    cloud = begun(smc2, key_start, model)
    cloud = jax.lax.fori_loop(
        0,
        cloud.resampled.shape[0],
        lambda t, c: stepped(smc2, model, jax.random.fold_in(key_steps, t), t, c),
        cloud,
    )
    return ended(smc2, key_end, model, cloud)


def begun(smc2: SMC2, key: PRNGKeyArray, model: Parametric) -> Cloud:
    """Parameters from the prior, their filters after init."""
    keys = jax.random.split(key, smc2.n_parameters)
    filters, log_weights = jax.vmap(lambda k: _start(smc2.pmmh, model, k))(keys)
    length = model.at(jax.tree.map(lambda x: x[0], filters.at.theta)).state_space().length
    history = jnp.full(length + 1, jnp.nan, log_weights.dtype)
    return Cloud(
        filters,
        log_weights,
        checked(Status.ok(), log_weights, jnp.int32(-1)),
        history.at[0].set(effective_sample_size(log_weights)),
        history.at[0].set(log_mean_exp(log_weights)),
        jnp.zeros(length, bool),
        history[1:],
    )


def ended(smc2: SMC2, key: PRNGKeyArray, model: Parametric, cloud: Cloud) -> ParameterParticles:
    """The population with what `at_length` says, and paths."""
    pmmh = smc2.pmmh

    def end(key, filtered):
        driver = filtering(pmmh.smc).driver(model.at(filtered.at.theta))
        final = log_mean_exp(final_log_weights(driver, filtered.population))
        return final, pmmh.path(key, model, filtered)

    final, choices = jax.vmap(end)(jax.random.split(key, smc2.n_parameters), cloud.filters)
    log_weights = gained(cloud.log_weights, cloud.filters.log_evidence, final)
    log_evidence, ess = log_mean_exp(log_weights), effective_sample_size(log_weights)
    return ParameterParticles(
        choices,
        log_weights,
        log_evidence,
        ess,
        checked(cloud.status, log_weights, jnp.int32(cloud.resampled.shape[0])),
        cloud.ess.at[-1].set(ess),
        cloud.log_evidence.at[-1].set(log_evidence),
        cloud.resampled,
        cloud.acceptance,
    )


def _start(pmmh: PMMH, model: Parametric, key):
    """Parameters from the prior, with their filter after init, and the log-weight of both."""
    key_params, key_run = jax.random.split(key)
    filtered = pmmh.filtered(key_run, model, model.draw(key_params), None, jnp.int32(0))
    return filtered, filtered.log_density(True)


def stepped(smc2: SMC2, model: Parametric, key, t, cloud: Cloud) -> Cloud:
    """Step t of all filters; then parameters are resampled if need be, and moved."""
    key_filters, key_moves = jax.random.split(key)
    m, pmmh = smc2.n_parameters, smc2.pmmh

    def one(i, filtered):
        driver = filtering(pmmh.smc).driver(model.at(filtered.at.theta))
        population = step(driver, jax.random.fold_in(key_filters, i), filtered.population, t)
        log_evidence = log_mean_exp(population.log_weights)
        return eqx.tree_at(
            lambda f: (f.population, f.log_evidence), filtered, (population, log_evidence)
        )

    filters = jax.vmap(one)(jnp.arange(m), cloud.filters)
    log_weights = gained(cloud.log_weights, cloud.filters.log_evidence, filters.log_evidence)
    status = checked(cloud.status, log_weights, t)
    wanted = smc2.resampler.needed(log_weights)

    ess, log_evidence = effective_sample_size(log_weights), log_mean_exp(log_weights)
    key_draw, key_move = jax.random.split(key_moves)

    def drawn(filters, log_weights):
        ancestors = smc2.resampler.ancestors(key_draw, log_weights)
        # In a batch of runs all come here if one wants it.
        ancestors = jnp.where(wanted, ancestors, jnp.arange(m, dtype=ancestors.dtype))
        level = jnp.where(wanted, log_mean_exp(log_weights), log_weights)
        return jax.tree.map(lambda x: x[ancestors], filters), level

    def keep(filters, log_weights):
        return filters, log_weights

    filters, log_weights = jax.lax.cond(any_member(wanted), drawn, keep, filters, log_weights)
    turn = wanted if smc2.every is None else (t + 1) % smc2.every == 0
    none = jnp.full((), jnp.nan, log_weights.dtype)

    def move(i, filtered):
        def once(current, j):
            key_once = jax.random.fold_in(jax.random.fold_in(key_move, i), j)
            return pmmh.move(key_once, model, current, t + 1)

        return jax.lax.scan(once, filtered, jnp.arange(smc2.moves))

    def moved(filters):
        new, accepted = jax.vmap(move)(jnp.arange(m), filters)
        rate = jnp.mean(accepted).astype(none.dtype)
        return jax.tree.map(lambda a, b: jnp.where(turn, a, b), (new, rate), (filters, none))

    rate = none
    if smc2.moves:
        filters, rate = jax.lax.cond(any_member(turn), moved, lambda f: (f, none), filters)
    return Cloud(
        filters,
        log_weights,
        status,
        cloud.ess.at[t + 1].set(ess),
        cloud.log_evidence.at[t + 1].set(log_evidence),
        cloud.resampled.at[t].set(wanted),
        cloud.acceptance.at[t].set(rate),
    )


def gained(log_weights, before, after):
    """Weights times the growth of each filter's Z-hat; zero stays zero."""
    dead = jnp.isneginf(log_weights) | jnp.isneginf(before)
    return jnp.where(dead, -jnp.inf, log_weights + after - before)


def checked(status: Status, log_weights: Float[Array, "m"], t: Int[Array, ""]) -> Status:
    """The status after step t."""
    status = status.then(jnp.any(jnp.isnan(log_weights)), NAN, t)
    return status.then(is_dead(log_weights), DEAD, t)
