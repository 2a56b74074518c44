"""The weighted population that inference returns."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ..ppl.partial import Choices
from ..ppl.status import Status
from .resampling import Multinomial, effective_sample_size


def log_mean_exp(log_weights: Float[Array, "n"]) -> Float[Array, ""]:
    """Log of the mean weight, nats; -inf if all are zero."""
    return jax.nn.logsumexp(log_weights) - jnp.log(
        jnp.asarray(log_weights.shape[0], log_weights.dtype)
    )


def level_and_size(log_weights: Float[Array, "n"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`log_mean_exp` and `effective_sample_size`, with one exponential a weight."""
    top = jax.lax.stop_gradient(jnp.max(log_weights))
    weights = jnp.exp(log_weights - jnp.where(jnp.isneginf(top), 0, top))
    mass, square = jnp.sum(weights), jnp.sum(weights * weights)
    level = jnp.log(mass / weights.shape[0]) + top
    size = mass**2 / jnp.where(square == 0, 1, square)
    return jnp.where(jnp.isposinf(top), top, level), size


class Particles(eqx.Module):
    """A properly weighted population: E[(1/N) sum_i w_i f(x_i)] = Z E_post[f(x)] for every f.

    - `choices`: leading axis N. Sites of steps then have the time axis; steps after a finish hold
      zeros.
    - `log_weights` [N], nats: they carry the evidence so far, so that
      `log_evidence == logsumexp(log_weights) - log N` always (of a heuristic it is NaN).
    - `log_evidence`: log Z-hat; Z-hat is unbiased (its logarithm is not: it is low by about half
      its variance).
    - `ess`: effective sample size of the weights. `ess_history`, `log_evidence_history` [length +
      1]: after init and after each step, before the next resampling.
    - `ancestors` [length, N]: parent of particle i at step t, an index into the population before
      it; identity where no resampling took place. `resampled` [length] says where it did.
    - `exponents` [length + 1]: those of the annealing, None without one.
    - `lengths` [N]: steps until done. `state`: final states without hot parts. `record`: see
      `Record`.
    - `acceptance` [length]: mean acceptance rate of the rejuvenation kernel, NaN without one.
    - `position`: index of the retained particle in a conditional run, else -1.
    - `status`: how the run ended. After a failure the weights are what they were: zero or NaN,
      never repaired.

    A batch of runs (`run_many`) has one more leading axis everywhere.
    """

    choices: Choices
    log_weights: Float[Array, "*batch n"]
    log_evidence: Float[Array, "*batch"]
    ess: Float[Array, "*batch"]
    status: Status
    ancestors: Int[Array, "*batch steps n"]
    resampled: Bool[Array, "*batch steps"]
    ess_history: Float[Array, "*batch moves"]
    log_evidence_history: Float[Array, "*batch moves"]
    exponents: Float[Array, "*batch moves"] | None
    acceptance: Float[Array, "*batch steps"]
    lengths: Int[Array, "*batch n"]
    position: Int[Array, "*batch"]
    state: PyTree
    record: PyTree

    @property
    def weights(self) -> Float[Array, "*batch n"]:
        """Normalised weights; NaN if the population is dead."""
        return jax.nn.softmax(self.log_weights, axis=-1)

    def expectation(self, f: Callable[[Choices], Any]) -> PyTree:
        """sum_i W_i f(choices_i), a tree: consistent, not unbiased; NaN if all are dead."""
        values = jax.vmap(f)(self.choices)

        def mean(x):
            w = self.weights.reshape((-1,) + (1,) * (x.ndim - 1))
            x = x.astype(w.dtype) if not jnp.issubdtype(x.dtype, jnp.inexact) else x
            return jnp.sum(jnp.where(w > 0, w * x, jnp.zeros_like(x)), axis=0) + 0 * jnp.sum(w)

        return jax.tree.map(mean, values)

    def pick(self, key: PRNGKeyArray) -> Int[Array, ""]:
        """The index of one particle, drawn by weight; never one of weight zero."""
        return Multinomial().ancestors(key, self.log_weights)[0]

    def resample(self, key: PRNGKeyArray) -> "Particles":
        """The population resampled to equal weights (multinomial); evidence and histories stay."""
        index = Multinomial().ancestors(key, self.log_weights)
        return self.take(index, jnp.full_like(self.log_weights, self.log_evidence))

    def take(self, index: Int[Array, "m"], log_weights: Float[Array, "m"]) -> "Particles":
        """The particles at `index`, with the weights given."""
        fields = (self.choices, self.lengths, self.state, self.record)
        choices, lengths, state, record = jax.tree.map(lambda x: x[index], fields)
        return eqx.tree_at(
            lambda p: (p.choices, p.lengths, p.state, p.record, p.log_weights, p.ess),
            self,
            (choices, lengths, state, record, log_weights, effective_sample_size(log_weights)),
            is_leaf=lambda x: x is None,
        )

    def lineage(self) -> Int[Array, "moves n"]:
        """[length + 1, N]: each final particle's ancestor after init and after each step."""
        n = self.log_weights.shape[-1]
        return trace_back(self.ancestors, jnp.arange(n, dtype=jnp.int32))

    def unique_ancestors(self) -> Int[Array, "moves"]:
        """How many particles of each move have a descendant at the end (path degeneracy)."""
        lineage = jnp.sort(self.lineage(), axis=-1)
        return 1 + jnp.sum(lineage[:, 1:] != lineage[:, :-1], axis=-1)

    def plot(self, axes: Any = None) -> Any:
        """Genealogy, effective sample size and evidence over time; a matplotlib figure."""
        from .plots import plot_particles

        return plot_particles(self, axes)

    def to_arviz(self, key: PRNGKeyArray | None = None) -> Any:
        """For ArviZ: the particles resampled by weight as draws, weights as sample stats."""
        from .export import to_arviz

        return to_arviz(self, key)

    def __repr__(self) -> str:
        if isinstance(self.log_evidence, Tracer) or self.log_evidence.ndim:
            return f"Particles(log_weights={self.log_weights!r}, status={self.status!r})"
        return (
            f"Particles(n={self.log_weights.shape[-1]}, "
            f"log_evidence={float(self.log_evidence):.4f}, "
            f"ess={float(self.ess):.1f}, sites={sorted(self.choices)}, status={self.status!r})"
        )


def trace_back(ancestors: Int[Array, "steps n"], last: Int[Array, "n"]) -> Int[Array, "moves n"]:
    """Ancestors of the particles `last` after init and after each step: [steps + 1, n]."""

    def back(index, parents):
        return parents[index], index

    first, later = jax.lax.scan(back, last, ancestors, reverse=True)
    return jnp.concatenate([first[None], later])
