"""A particle filter run step by step: to a traced number of steps, watched, states kept."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ...ppl.combinators.branches import any_member
from ...ppl.errors import ProgramError
from ...ppl.hot import drop_hot, is_hot
from ..driver import Driver
from ..population import Population, buffers, get_row, set_row

Before = Callable[[PRNGKeyArray, Population, Int[Array, ""]], Population]


class Rows(eqx.Module):
    """States [length + 1, N, ...] after init and each step, and the weights that they had.

    Or one row of these.
    """

    states: PyTree
    log_weights: Float[Array, "*moves n"]


def constant_memory(population: Population) -> Population:
    """The population with histories of one row only, which every step overwrites."""

    def histories(p):
        return p.store, p.ancestors, p.pointers, p.resampled, p.acceptance

    one = jax.tree.map(lambda x: x[:1], histories(population))
    return eqx.tree_at(histories, population, one)


def check_cold(state: PyTree, who: str) -> None:
    """Raise if a state has a hot part, which is kept nowhere."""
    if any(is_hot(x) for x in jax.tree.leaves(state, is_leaf=is_hot)):
        raise ProgramError(
            f"{who} reads the states of the past, but this model has state inside Hot, which is "
            "never kept. Instead use particles.choices (the genealogy), or "
            "ParticleGibbs(ancestor_sampling=True), which needs present states only"
        )


def run_steps(
    driver: Driver,
    key: PRNGKeyArray,
    steps: Int[Array, ""] | None = None,
    before: Before | None = None,
) -> Population:
    """The population after `steps` steps (all by default), as `SMC.run` makes it.

    `before(key, population, t)` changes the population before it is resampled for step t.
    """
    population = driver.init(key)
    stop = _stop(driver, steps)
    if driver.length == 0:
        return population

    def body(t, population):
        key_t = jax.random.fold_in(key, t + 1)
        if before is not None:
            population = before(key_t, population, t)
        return step(driver, key_t, population, t)

    if driver.never_over:
        return jax.lax.fori_loop(0, stop, body, population)

    def going(carry):
        t, population = carry
        return (t < stop) & any_member(~driver.all_done(population))

    def go(carry):
        t, population = carry
        return t + 1, body(t, population)

    return jax.lax.while_loop(going, go, (jnp.int32(0), population))[1]


def run_rows(
    driver: Driver,
    key: PRNGKeyArray,
    steps: Int[Array, ""] | None = None,
    before: Before | None = None,
) -> tuple[Population, Rows]:
    """`run_steps`, keeping the states and weights of all moves (states without hot parts)."""
    population = driver.init(key)
    check_cold(population.state, "smoothing")
    stop = _stop(driver, steps)

    def row(population):
        return Rows(drop_hot(population.state), population.log_weights)

    rows = set_row(buffers(row(population), driver.length + 1), jnp.int32(0), row(population))
    if driver.length == 0:
        return population, rows

    def body(t, carry):
        population, rows = carry
        key_t = jax.random.fold_in(key, t + 1)
        if before is not None:
            population = before(key_t, population, t)
        population = step(driver, key_t, population, t)
        return population, set_row(rows, t + 1, row(population))

    return jax.lax.fori_loop(0, stop, body, (population, rows))


def step(
    driver: Driver, key: PRNGKeyArray, population: Population, t: Int[Array, ""]
) -> Population:
    """Step t of the filter, its key given."""
    _, fixed = driver.fk.split(driver.target.constraints)
    retained = None if driver.retained is None else get_row(driver.fk.split(driver.retained)[1], t)
    return driver.step(key, population, t, get_row(fixed, t), retained)


def final_log_weights(
    driver: Driver, population: Population, steps: Any = None
) -> Float[Array, "n"]:
    """Log-weights at the end: with what `at_length` says if the whole model was run."""
    if steps is not None:
        return population.log_weights
    each = jnp.arange(driver.n_particles)
    ending = driver.mapping.over(lambda i, state: driver.fk.end(state), each, population.state)
    return population.log_weights + ending


def _stop(driver: Driver, steps):
    if steps is None:
        return driver.length
    return jnp.minimum(jnp.asarray(steps, jnp.int32), driver.length)
