"""The carry of a particle filter: everything needed to go on with a run."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from ..ppl.feynman_kac import Moved
from ..ppl.partial import walk, where_leading
from ..ppl.status import DEAD, NAN, UNSUPPORTED, Status


class Population(eqx.Module):
    """Particles in the middle of a run, and the store of what they did.

    `store` holds what `Record` keeps: of init [N, ...], and of the steps [length, N, ...] as made;
    `pointers` are the indices that read it back along lineages where a kernel may rewrite the past;
    without one they are `ancestors`, and the field is empty. `ess_history[t]` is that of the
    priorities for step t, from which the next decision is taken. `log_priority` is what is
    resampled by, None for the weights; `log_potential` and `exponents` [length + 1] are what an
    annealing needs (see `Weighted`).
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
    pointers: Int[Array, "steps _"]
    resampled: Bool[Array, "steps"]
    ess_history: Float[Array, "moves"]
    log_evidence_history: Float[Array, "moves"]
    acceptance: Float[Array, "steps"]

    @property
    def priority(self) -> Float[Array, "n"]:
        """Log priorities for resampling."""
        return self.log_weights if self.log_priority is None else self.log_priority


def get_row(tree: PyTree, t: Int[Array, ""] | int) -> PyTree:
    """Row t of every leaf."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, t, 0, keepdims=False), tree)


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


def checked(
    status: Status,
    moved: Moved,
    log_weights: Float[Array, "n"],
    level: Float[Array, ""],
    t: Int[ArrayLike, ""],
    *,
    alive: Bool[Array, "n"] | None = None,
    retained: Int[Array, ""] | None = None,
    behind: int = 1,
) -> Status:
    """The status after a move that left these weights; `level` is the log of their mean.

    `alive` before the move (None of the first one); `retained` is the retained particle of a
    conditional run. The last `behind` sites of a status are no sites of the model.
    """
    names = site_names(moved.log_probs)
    last = len(status.sites) - behind
    terms = (moved.log_probs, moved.log_potential)
    if alive is not None:
        terms = jax.tree.map(lambda x: where_leading(alive, x, jnp.zeros_like(x)), terms)
    worst = jnp.argmax(nan_flags(*terms)).astype(jnp.int32)
    offset = 0 if alive is None else last - len(names)
    site = jnp.where(worst == len(names), jnp.int32(last), worst + offset)
    status = status.then(jnp.isnan(level), NAN, t, site)
    if retained is not None:
        status = status.then((retained < 0) | (log_weights[retained] == -jnp.inf), UNSUPPORTED, t)
    return status.then(jnp.isneginf(level), DEAD, t)
