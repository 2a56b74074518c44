"""Invariance: a kernel started at posterior draws ends at posterior draws (after Geweke 2004)."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..compiled import compiled
from ..enumeration import ExactPosterior, enumerate
from ..partial import Choices
from ..target import Target, as_target
from .functions import Features, features, z_scores
from .result import LawResult, Measure, decide

CHUNK = 2**13

ADVICE = (
    "The kernel does not leave the target invariant. Look for a proposal density left out of "
    "the acceptance ratio, a ratio upside down, or a retained particle that is not retained."
)


class OnTraces(eqx.Module):
    """A kernel on traces, `kernel(key, target, trace) -> trace`, as one on choices."""

    kernel: Any
    target: Target

    def __call__(self, key: PRNGKeyArray, choices: Choices) -> Choices:
        """One move."""
        key_run, key_move = jax.random.split(key)
        out = self.target.model.run(key_run, self.target.joined(choices), self.target.args)
        return self.kernel(key_move, self.target, out.trace()).choices


class _Moves(eqx.Module):
    """The functions after some moves from each start."""

    kernel: Callable
    functions: Features
    choices: Choices
    steps: int = eqx.field(static=True)

    def __call__(self, key: PRNGKeyArray, start: Int[Array, ""]) -> Float[Array, " f"]:
        choices = jax.tree.map(lambda x: x[start], self.choices)

        def move(choices, i):
            return self.kernel(jax.random.fold_in(key, i), choices), None

        choices, _ = jax.lax.scan(move, choices, jnp.arange(self.steps))
        return self.functions(choices)


@compiled
def _moved(moves, keys, starts):
    return jax.vmap(moves)(keys, starts)


def invariance(
    key: PRNGKeyArray,
    kernel: Callable,
    target: Any,
    *,
    functions: Mapping[str, Callable] | None = None,
    runs: int = 2**18,
    steps: int = 3,
) -> LawResult:
    """Check that a kernel leaves the enumerated posterior invariant.

    Law: if x is a posterior draw, so is x after `steps` moves. Starts are stratified: every
    possible choice is the start of a share of the runs proportional to its probability, and the
    strata are put together with their exact probabilities, so that no variance comes from the
    starts. `kernel` is any function `(key, choices) -> choices`, or an `inference` kernel, `(key,
    target, trace) -> trace`. Choices are those of `enumerate(target).choices`: constrained sites
    included.
    """
    target = as_target(target)
    posterior = enumerate(target)
    if hasattr(kernel, "move"):
        kernel = OnTraces(kernel, target)
    return decide("invariance", moving(kernel, posterior, functions, steps), key, runs, ADVICE)


def moving(
    kernel: Callable,
    posterior: ExactPosterior,
    functions: Mapping[str, Callable] | None = None,
    steps: int = 1,
) -> Measure:
    """The z-scores of invariance, as a function of key and runs."""
    f, exact = features(posterior, functions)
    moves = _Moves(kernel, f, posterior.choices, steps)
    p = np.exp(posterior.log_probs)

    def measure(key, runs):
        counts = np.maximum(np.round(p * runs).astype(int), 2)
        starts = np.repeat(np.arange(len(p)), counts)
        total, squares = np.zeros((2, len(p), len(f.names)))
        for i in range(0, len(starts), CHUNK):
            part = starts[i : i + CHUNK]
            padded = np.pad(part, (0, CHUNK - len(part)))
            keys = jax.random.split(jax.random.fold_in(key, i), CHUNK)
            values = np.asarray(_moved(moves, keys, jnp.asarray(padded)), np.float64)[: len(part)]
            np.add.at(total, part, values)
            np.add.at(squares, part, values**2)
        n = counts[:, None]
        variance = np.maximum(squares / n - (total / n) ** 2, 0) * n / (n - 1)
        error = np.sqrt((p[:, None] ** 2 * variance / n).sum(0))
        z, untested = z_scores(f, p @ (total / n), error, exact, runs)
        z.pop("1")
        return z, untested

    return measure
