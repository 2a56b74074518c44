"""Paths of all particles in memory of order T + N log N instead of T N.

Jacob, Murray and Rubenthaler (2015), "Path storage in the particle filter", Algorithms 1-5: a tree
of the nodes that still have a descendant; a branch without one is cut and its slots are used again.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray, PyTree

from ...ppl.compiled import compiled
from ...ppl.partial import Choices
from ...ppl.status import Status
from ...ppl.target import Target, as_target
from ..smc import SMC
from .failure import OVERFLOW, Failure
from .forward import filtering
from .stepping import constant_memory, final_log_weights, step


class PathTree(eqx.Module):
    """The ancestry of N particles as a tree with a fixed number of slots.

    - `parents`, `offspring` [capacity]: index of the parent (-1: none) and the number of children;
      0 is a free slot. A leaf of the present counts one child, itself.
    - `rows`: [capacity, ...], what is stored of each. `leaves` [N]: the present particles' slots.
    - `overflowed`: slots have run out, and paths are lost. `most`: the most slots ever in use.
    """

    parents: Int[Array, "capacity"]
    offspring: Int[Array, "capacity"]
    rows: PyTree
    leaves: Int[Array, "n"]
    overflowed: Bool[Array, ""]
    most: Int[Array, ""]

    @staticmethod
    def start(rows: PyTree, n: int, capacity: int) -> "PathTree":
        """A tree of N roots with these rows [N, ...]."""
        if capacity < n:
            raise ValueError(f"capacity is at least the number of particles, {n}; got {capacity}")
        first = jnp.arange(n, dtype=jnp.int32)

        def stored(x):
            return jnp.zeros((capacity, *x.shape[1:]), x.dtype).at[:n].set(x)

        return PathTree(
            parents=jnp.full(capacity, -1, jnp.int32),
            offspring=jnp.zeros(capacity, jnp.int32).at[:n].set(1),
            rows=jax.tree.map(stored, rows),
            leaves=first,
            overflowed=jnp.zeros((), bool),
            most=jnp.int32(n),
        )

    def grow(self, ancestors: Int[Array, "n"], rows: PyTree) -> "PathTree":
        """The next generation, whose parents are the present particles `ancestors`."""
        n, capacity = self.leaves.shape[0], self.parents.shape[0]
        children = jnp.zeros(n, jnp.int32).at[ancestors].add(1)
        offspring = self.offspring.at[self.leaves].set(children)
        offspring = self._pruned(offspring, children == 0)
        free = offspring == 0
        (slots,) = jnp.nonzero(free, size=n, fill_value=capacity)
        slots = slots.astype(jnp.int32)
        used = capacity - jnp.sum(free, dtype=jnp.int32) + n

        def write(store, row):
            return store.at[slots].set(row.astype(store.dtype), mode="drop")

        return PathTree(
            parents=write(self.parents, self.leaves[ancestors]),
            offspring=write(offspring, jnp.ones(n, jnp.int32)),
            rows=jax.tree.map(write, self.rows, rows),
            leaves=jnp.minimum(slots, capacity - 1),
            overflowed=self.overflowed | (used > capacity),
            most=jnp.maximum(self.most, used),
        )

    def _pruned(self, offspring, childless: Bool[Array, "n"]):
        """Cut leaves without children, then parents that have lost their last one, and so on."""
        n, capacity = self.leaves.shape[0], self.parents.shape[0]
        each = jnp.arange(n, dtype=jnp.int32)

        def cut(carry):
            offspring, node, dying = carry
            parent = jnp.where(dying, self.parents[node], -1)
            dying = parent >= 0
            target = jnp.where(dying, parent, capacity)
            offspring = offspring.at[target].add(-1, mode="drop")
            # Of several children that took the last of a parent one goes on.
            heir = jnp.full(capacity, -1, jnp.int32).at[target].max(each, mode="drop")
            node = jnp.where(dying, parent, 0)
            dying = dying & (offspring[node] == 0) & (heir[node] == each)
            return offspring, node, dying

        carry = (offspring, self.leaves, childless)
        return jax.lax.while_loop(lambda c: jnp.any(c[2]), cut, carry)[0]

    def read(self, length: int) -> PyTree:
        """The rows along each present particle's path: [length, N, ...], oldest first."""

        def back(node, _):
            return jnp.maximum(self.parents[node], 0), jax.tree.map(lambda x: x[node], self.rows)

        return jax.lax.scan(back, self.leaves, None, length=length, reverse=True)[1]


class StoredPaths(eqx.Module):
    """Every particle's choices, out of a tree.

    - `choices`: leading axis N; `log_weights` [N]. `status`: how the run ended.
    - `most`: the most slots in use at a time. `failure`: overflow, or that of the run.
    """

    choices: Choices
    log_weights: Any
    most: Int[Array, ""]
    status: Status
    failure: Failure


def stored_paths(key: PRNGKeyArray, smc: SMC, target: Any, capacity: int) -> StoredPaths:
    """`smc.run` with its choices in a tree of `capacity` slots instead of T x N.

    The choices are the same ones. In expectation length + c N log N slots are in use, with c of the
    order of ten and smaller for the better resamplers and rare resampling.
    """
    return _stored_paths(key, filtering(smc), as_target(target), capacity)


@compiled
def _stored_paths(key: PRNGKeyArray, smc: SMC, target: Target, capacity: int) -> StoredPaths:
    driver = smc.driver(target)
    population = driver.init(key)
    initial, length = population.initial["choices"], driver.length
    if length == 0:
        raise ValueError("a program has no steps, and so no paths to store: use smc.run")
    population = constant_memory(population)
    n = driver.n_particles
    each = jnp.arange(n, dtype=jnp.int32)
    row = jax.tree.map(lambda x: x[0], population.store["choices"])
    # Roots are init; their row, which steps do not have, stays zero.
    tree = PathTree.start({"root": each, "step": row}, n, capacity)

    def body(t, carry):
        population, tree, full = carry
        population = step(driver, jax.random.fold_in(key, t + 1), population, t)
        made = jax.tree.map(lambda x: x[0], population.store["choices"])
        ancestors = population.ancestors[0]
        rooted = tree.rows["root"][tree.leaves][ancestors]
        tree = tree.grow(ancestors, {"root": rooted, "step": made})
        return population, tree, full.then(tree.overflowed, OVERFLOW, t)

    population, tree, failure = jax.lax.fori_loop(
        0, length, body, (population, tree, Failure.none())
    )
    later = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), tree.read(length)["step"])
    root = tree.rows["root"][tree.leaves]
    choices = {**jax.tree.map(lambda x: x[root], initial), **later}
    failed = Failure.of(population.status)
    failure = failure.then(failed.code != 0, failed.code, failed.step)
    log_weights = final_log_weights(driver, population)
    return StoredPaths(choices, log_weights, tree.most, population.status, failure)
