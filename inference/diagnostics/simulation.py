"""What all checks by simulation share: truth and data from the program, a posterior for the data.

Batches are compiled once; several statistics of the same simulations cost one posterior.
"""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ...ppl.code import Code
from ...ppl.compiled import compiled
from ...ppl.errors import ProgramError
from ...ppl.generative import Request
from ...ppl.partial import Choices
from ...ppl.program import as_program
from ...ppl.target import Target
from ..particles import Particles
from ..resampling import Systematic

_PURE = Request(weightless=True)


class Simulated(eqx.Module):
    """One simulation: `both` has the free choices, row 0 the truth, the other rows posterior draws.

    `log_density` [rows] is the log joint density of each row with the data, nats. `log_weights` are
    those of the algorithm's population, or of a network's draws where it tells their density; None
    for a function that only draws.
    """

    data: Choices
    both: Choices
    log_density: Float[Array, "rows"]
    log_weights: Float[Array, "n"] | None


class Simulation(eqx.Module):
    """Draws truth and data, runs the algorithm, and takes statistics (key, `Simulated`) -> tree."""

    program: Any
    algorithm: Any
    observed: tuple[str, ...] = eqx.field(static=True)
    args: tuple
    draws: int = eqx.field(static=True)
    statistics: Mapping[str, Any]

    def __call__(self, key: PRNGKeyArray) -> tuple[PyTree, Array]:
        """The statistics by name and the number of draws; whether the posterior is usable."""
        key_truth, key_run, key_pick, key_ties = jax.random.split(key, 4)
        truth, data = prior_draw(key_truth, self.program, self.observed, self.args)
        target = Target(self.program, self.args, data)
        log_weights = None
        if hasattr(self.algorithm, "run"):
            particles: Particles = self.algorithm.run(key_run, target)
            ok, log_weights = jnp.isfinite(particles.log_evidence), particles.log_weights
            posterior = _resampled(key_pick, particles, self.draws)
        elif hasattr(self.algorithm, "sample"):
            posterior = self.algorithm.sample(key_run, data, self.draws)
            ok = jnp.ones((), bool)
        else:
            posterior, ok = self.algorithm(key_run, target), jnp.ones((), bool)
        posterior = {name: x for name, x in posterior.items() if name not in data}
        for leaf in jax.tree.leaves(posterior):
            if jnp.issubdtype(leaf.dtype, jnp.inexact):
                ok &= jnp.all(jnp.isfinite(leaf))
        both = jax.tree.map(
            lambda x, xs: jnp.concatenate([x[None], xs.astype(x.dtype)]), truth, posterior
        )
        log_density = jax.vmap(target.log_density)(both)
        if log_weights is None and hasattr(self.algorithm, "log_prob"):
            log_weights = log_density[1:] - self.algorithm.log_prob(data, posterior)
        simulated = Simulated(data, both, log_density, log_weights)
        keys = jax.random.split(key_ties, len(self.statistics))
        taken = {
            n: f(k, simulated) for k, (n, f) in zip(keys, self.statistics.items(), strict=True)
        }
        return {**taken, "draws": jnp.int32(log_density.shape[0] - 1)}, ok


def prior_draw(
    key: PRNGKeyArray, program: Any, observed: tuple[str, ...], args: tuple
) -> tuple[Choices, Choices]:
    """Latents and data of one draw from the program.

    Raises:
        ProgramError: `observed` does not name some, but not all, of its sites.
    """
    truth = program.run(key, {}, args, _PURE).choices
    missing = [name for name in observed if name not in truth]
    if missing or len(observed) == len(truth) or not observed:
        raise ProgramError(
            f"observed={list(observed)} must name some, not all, of the program's sites "
            f"{sorted(truth)}"
        )
    free = {name: node for name, node in truth.items() if name not in observed}
    return free, {name: truth[name] for name in observed}


def simulate(
    key: PRNGKeyArray,
    program: Any,
    algorithm: Any,
    observed: tuple[str, ...],
    runs: int,
    statistics: Mapping[str, Any],
    *,
    args: tuple = (),
    draws: int = 99,
    batch: int = 250,
) -> tuple[dict[str, PyTree], int, int]:
    """Statistics of `runs` simulations, leading axis those that did not fail; see `sbc`.

    Returns:
        The statistics, the number of posterior draws a simulation, and how many failed.
    """
    if not isinstance(algorithm, eqx.Module):
        algorithm = Code(algorithm)
    one = Simulation(as_program(program), algorithm, observed, args, draws, statistics)
    parts, failed = [], []
    for start in range(0, runs, batch):
        keys = jax.random.split(jax.random.fold_in(key, start), min(batch, runs))
        taken, ok = _vmapped(one, keys)
        count = min(batch, runs - start)
        parts.append(jax.tree.map(lambda x, n=count: np.asarray(x)[:n], taken))
        failed.append(~np.asarray(ok)[:count])
    bad = np.concatenate(failed)
    taken = jax.tree.map(lambda *xs: np.concatenate(xs)[~bad], *parts)
    number = int(np.asarray(taken.pop("draws")).max(initial=0))
    return taken, number, int(bad.sum())


@compiled
def _vmapped(one, keys):
    return jax.vmap(one)(keys)


def _resampled(key: PRNGKeyArray, particles: Particles, draws: int) -> Choices:
    """Draws by weight. With more draws than particles the weights are repeated: still proper."""
    n = particles.log_weights.shape[0]
    log_w = jnp.tile(particles.log_weights, -(-draws // n))
    key_pick, key_order = jax.random.split(key)
    index = Systematic().ancestors(key_pick, log_w) % n
    index = jax.random.permutation(key_order, index)[:draws]
    return jax.tree.map(lambda x: x[index], particles.choices)


def rank(key: PRNGKeyArray, values: Array) -> Int[Array, "..."]:
    """Rank of row 0 among the others, ties broken at random."""
    truth, draws = values[:1], values[1:]
    below = jnp.sum(draws < truth, axis=0)
    ties = jnp.sum(draws == truth, axis=0)
    return (below + jax.random.randint(key, ties.shape, 0, ties + 1)).astype(jnp.int32)


def flat(tree: PyTree) -> Float[Array, "n"]:
    """All numbers of a tree of choices as one vector."""
    leaves = [jnp.ravel(jnp.asarray(x, float)) for x in jax.tree.leaves(tree)]
    return jnp.concatenate(leaves) if leaves else jnp.zeros(0)
