"""Moving particles by a Markov kernel during a run (Gilks and Berzuini 2001)."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from ..ppl.generative import likelihood
from ..ppl.hot import drop_hot
from ..ppl.partial import as_given, total
from ..ppl.target import Target
from ..ppl.trace import Trace
from .mapping import Mapping
from .mcmc.kernel import Chain, Kernel
from .particles import trace_back
from .population import Population


def past(initial: Any, store: Any, lineage: Int[Array, "moves n"]) -> tuple[Any, Any]:
    """The store read along lineages: init's [N, ...] and the steps' as [N, steps, ...]."""

    def along(rows):
        taken = jax.vmap(lambda row, index: row[index])(rows, lineage[1:])
        return jnp.moveaxis(taken, 0, 1)

    return jax.tree.map(lambda x: x[lineage[0]], initial), jax.tree.map(along, store)


def rejuvenate(
    key: PRNGKeyArray,
    kernel: Kernel,
    target: Target,
    mapping: Mapping,
    population: Population,
    t: Int[Array, ""],
) -> Population:
    """Apply the kernel to every particle, if it is due; its target is the first t + 1 steps.

    Costs O(t) a particle. The past of the moved particles is written back to the store in place.
    """

    def move(population):
        return _moved(key, kernel, target, mapping, population, t)

    due = kernel.due(t + 1)
    if due is True:
        return move(population)
    return jax.lax.cond(due, move, lambda population: population, population)


def _moved(
    key: PRNGKeyArray,
    kernel: Kernel,
    target: Target,
    mapping: Mapping,
    population: Population,
    t: Int[Array, ""],
) -> Population:
    n = population.log_weights.shape[0]
    identity = jnp.arange(n, dtype=jnp.int32)
    initial, store = past(
        population.initial, population.store, trace_back(population.pointers, identity)
    )

    def traced(initial, store, state):
        first, later = (
            {k: part[k] for k in ("choices", "log_probs", "active", "log_weight")}
            for part in (initial, store)
        )
        log_probs = {**first["log_probs"], **later["log_probs"]}
        return Trace(
            choices={**first["choices"], **later["choices"]},
            score=total(log_probs),
            log_weight=first["log_weight"] + jnp.sum(later["log_weight"]),
            retval=drop_hot(state),
            log_probs=log_probs,
            active={**first["active"], **later["active"]},
        )

    traces = jax.vmap(traced)(initial, store, population.state)

    def move(i, trace, state):
        chain = Chain(trace, state, jnp.zeros(()))
        return kernel.move(jax.random.fold_in(key, i), target, chain, t + 1)

    chain = mapping.over(move, identity, traces, population.state)
    new = chain.trace

    def parts(tree):
        first = {name: tree[name] for name in population.initial["choices"]}
        later = {name: x for name, x in tree.items() if name not in first}
        return first, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), later)

    split = {field: parts(getattr(new, field)) for field in ("choices", "log_probs", "active")}
    # Later moves need only the sum of a moved particle's terms: it is stored with init.
    weights = jnp.zeros_like(population.store["log_weight"])
    initial = {
        **initial,
        **{field: pair[0] for field, pair in split.items()},
        "log_weight": new.log_weight,
    }
    store = {
        **population.store,
        **{field: pair[1] for field, pair in split.items()},
        "log_weight": weights,
    }
    steps, potential = population.pointers.shape[0], population.log_potential
    if potential is not None:
        fixed = as_given(target.constraints)
        old = jax.vmap(lambda trace: likelihood(trace, fixed))(traces)
        potential = potential + jax.vmap(lambda trace: likelihood(trace, fixed))(new) - old
    return eqx.tree_at(
        lambda p: (
            p.state,
            p.initial,
            p.store,
            p.pointers,
            p.acceptance,
            p.lengths,
            p.log_potential,
        ),
        population,
        (
            chain.state,
            initial,
            store,
            jnp.broadcast_to(identity, (steps, n)),
            population.acceptance.at[t].set(jnp.mean(chain.acceptance)),
            _lengths(split["active"][1], population.lengths),
            potential,
        ),
        is_leaf=lambda x: x is None,
    )


def _lengths(active: Any, old: Int[Array, "n"]) -> Int[Array, "n"]:
    """Number of steps in which any site happened."""
    rows = [x.reshape(*x.shape[:2], -1).any(-1) for x in jax.tree.leaves(active)]
    return jnp.any(jnp.stack(rows), axis=0).sum(0).astype(old.dtype) if rows else old
