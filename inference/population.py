"""The carry of a particle filter: everything needed to go on with a run."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..ppl.partial import walk
from ..ppl.status import Status


class Population(eqx.Module):
    """Particles in the middle of a run, and the store of what they did.

    `store` holds what `Record` keeps: of init [N, ...], and of the steps [length, N, ...] as made;
    `pointers` are the indices that read it back along lineages. They equal `ancestors` unless a
    kernel rewrote the past. `log_priority` is what is resampled by, None for the weights;
    `log_potential` and `exponents` [length + 1] are what an annealing needs (see `Weighted`).
    """

    state: PyTree
    log_weights: Float[Array, "n"]
    log_priority: Float[Array, "n"] | None
    log_potential: Float[Array, "n"] | None
    exponents: Float[Array, "moves"] | None
    lengths: Int[Array, "n"]
    position: Int[Array, ""]
    status: Status
    initial: Any
    store: Any
    ancestors: Int[Array, "steps n"]
    pointers: Int[Array, "steps n"]
    resampled: Bool[Array, "steps"]
    ess_history: Float[Array, "moves"]
    log_evidence_history: Float[Array, "moves"]
    acceptance: Float[Array, "steps"]

    @property
    def priority(self) -> Float[Array, "n"]:
        """Log priorities for resampling."""
        return self.log_weights if self.log_priority is None else self.log_priority


def set_row(buffer: PyTree, t: Int[Array, ""], row: PyTree) -> PyTree:
    """Write `row` at index t of every leaf, in place inside a loop."""
    return jax.tree.map(
        lambda b, r: jax.lax.dynamic_update_index_in_dim(b, r.astype(b.dtype), t, 0), buffer, row
    )


def buffers(row: PyTree, length: int) -> PyTree:
    """Zeros [length, ...] for rows of this shape."""
    return jax.tree.map(lambda r: jnp.zeros((length, *r.shape), r.dtype), row)


def site_names(log_probs: Any) -> tuple[str, ...]:
    """The addresses of the sites, in a fixed order."""
    names: list[str] = []
    walk(lambda path, lp: names.append("/".join(path)), log_probs)
    return tuple(names)


def nan_flags(log_probs: Any, log_potential: Float[Array, "n"]) -> Bool[Array, "sites"]:
    """Per site, and last for observes and factors: is any particle's log density NaN?"""
    flags: list = []
    walk(lambda path, lp: flags.append(jnp.any(jnp.isnan(lp))), log_probs)
    return jnp.stack([*flags, jnp.any(jnp.isnan(log_potential))])
