"""A Markov chain of any kernel, with what is kept of it."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ...ppl.code import Code
from ...ppl.compiled import compiled
from ...ppl.target import Target, as_target
from ...ppl.trace import Trace
from ..mcmc.kernel import Chain, Kernel
from ..mcmc.transition import written


class Chained(eqx.Module):
    """`kept` [moves, ...] of each move, their `acceptance` [moves], and the last trace."""

    kept: PyTree
    acceptance: Float[Array, "moves"]
    trace: Trace


def _choices(choices):
    return choices


def chain(
    key: PRNGKeyArray,
    kernel: Kernel,
    target: Any,
    trace: Trace,
    moves: int,
    keep: Callable = _choices,
) -> Chained:
    """Apply the kernel `moves` times from a trace; `keep(choices)` is what is kept of each."""
    return _chain(key, kernel, as_target(target), trace, moves, Code(keep))


@compiled
def _chain(
    key: PRNGKeyArray, kernel: Kernel, target: Target, trace: Trace, moves: int, keep: Code
) -> Chained:
    def move(current, i):
        new = kernel.move(jax.random.fold_in(key, i), target, current)
        return new, (keep(new.trace.choices), new.acceptance)

    start = Chain(written(trace), None, jnp.zeros(()))
    last, (kept, acceptance) = jax.lax.scan(move, start, jnp.arange(moves))
    return Chained(kept, acceptance, last.trace)
