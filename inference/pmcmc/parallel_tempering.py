"""Parallel tempering: chains at several powers of the likelihood that exchange their traces.

Geyer (1991); Earl and Deem (2005), "Parallel tempering", section 2. Even and odd pairs in turn
(deterministic even-odd): Syed, Bouchard-Cote, Deligiannidis and Doucet (2022), section 3.
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray, PyTree

from ...ppl.code import Code
from ...ppl.compiled import compiled
from ...ppl.generative import likelihood
from ...ppl.partial import as_given
from ...ppl.target import Target, as_target
from ...ppl.trace import Trace
from ..mcmc.kernel import Chain, Kernel
from ..mcmc.transition import log_uniform, written


class Ladder(eqx.Module):
    """One trace a power, leading axis K; how many moves were made; rates of the last move.

    `acceptance` [K] is the kernel's, `swapped` [K - 1] 1 where neighbours k, k + 1 changed places,
    0 where they did not, NaN where it was not their turn.
    """

    traces: Trace
    moves: Int[Array, ""]
    acceptance: Float[Array, "k"]
    swapped: Float[Array, "pairs"]


class Tempered(eqx.Module):
    """What the chains went through.

    `exponents` [K]: the powers; `kept` [moves, ...] of the chain at the last power,
    `log_likelihood` [moves, K] of all, `swaps` [K - 1]: how often neighbours changed places, of the
    times that it was their turn; `acceptance` [K]: of the kernel; `ladder`: the last one. For the
    evidence see `stepping_stone` and `thermodynamic`.
    """

    exponents: Float[Array, "k"]
    kept: PyTree
    log_likelihood: Float[Array, "moves k"]
    swaps: Float[Array, "pairs"]
    acceptance: Float[Array, "k"]
    ladder: Ladder


def _choices(choices):
    return choices


class ParallelTempering(eqx.Module):
    """`ParallelTempering(kernel, exponents)`: a kernel at each power, then swaps of neighbours.

    The last exponent is the one wanted, usually 1; the others are usually smaller.

    Law: leaves the product of the tempered targets (`target.tempered`) invariant, for every
    kernel that leaves each of them invariant. A likelihood that is only estimated (`marginal`,
    `normalize`) is raised as estimated: a trace takes its estimates along when it changes places.
    """

    kernel: Kernel
    exponents: Float[Array, " k"]

    def __init__(self, kernel: Kernel, exponents: ArrayLike | Sequence[float]):
        self.kernel, self.exponents = kernel, jnp.asarray(exponents, dtype=float)
        if self.exponents.ndim != 1 or self.exponents.shape[0] < 1:
            raise ValueError(
                f"exponents is a list of at least one power, got shape {self.exponents.shape}"
            )

    def start(self, traces: Trace) -> Ladder:
        """A ladder of given traces of the target, leading axis K."""
        k = self.exponents.shape[0]
        nothing = jnp.full(k, jnp.nan)
        return Ladder(written(traces), jnp.int32(0), nothing, nothing[1:])

    def step(self, key: PRNGKeyArray, target: Target, ladder: Ladder) -> Ladder:
        """One move of every chain by the kernel, then swaps of every other pair of neighbours."""
        key_moves, key_swaps = jax.random.split(key)
        k = self.exponents.shape[0]

        def move(i, exponent, trace):
            start = Chain(trace, None, jnp.zeros(()))
            at = target.tempered(exponent)
            new = self.kernel.move(jax.random.fold_in(key_moves, i), at, start, None)
            return new.trace, new.acceptance

        traces, rates = jax.vmap(move)(jnp.arange(k), self.exponents, ladder.traces)
        heat = _log_likelihood(target, traces)
        pair = jnp.arange(k - 1)
        turn = pair % 2 == ladder.moves % 2
        # Of a likelihood of zero nobody has, unless the start had: it is passed on for free.
        rise = jnp.diff(self.exponents).astype(heat.dtype) * (heat[:-1] - heat[1:])
        rise = jnp.where(heat[:-1] == heat[1:], jnp.zeros_like(rise), rise)
        u = jax.vmap(lambda i, r: log_uniform(jax.random.fold_in(key_swaps, i), r))(pair, rise)
        swap = turn & (u < rise)
        order = jnp.arange(k)
        order = order.at[:-1].add(swap.astype(order.dtype)).at[1:].add(-swap.astype(order.dtype))
        traces = jax.tree.map(lambda x: x[order], traces)
        swapped = jnp.where(turn, swap.astype(heat.dtype), jnp.nan)
        return Ladder(traces, ladder.moves + 1, rates, swapped)

    def run(
        self,
        key: PRNGKeyArray,
        target: Any,
        moves: int,
        traces: Trace | None = None,
        keep: Callable = _choices,
    ) -> Tempered:
        """`moves` moves from given traces, or from the prior; `keep(choices)` is what is kept."""
        return _run(self, key, as_target(target), moves, traces, Code(keep))


def _log_likelihood(target: Target, traces: Trace) -> Float[Array, " k"]:
    """What is raised to a power, nats: the target's own exponent included."""
    fixed = as_given(target.constraints)

    def one(trace):
        log_likelihood = likelihood(trace, fixed)
        return target.raised(log_likelihood, log_likelihood)

    return jax.vmap(one)(traces)


@compiled
def _run(
    tempering: ParallelTempering,
    key: PRNGKeyArray,
    target: Target,
    moves: int,
    traces: Trace | None,
    keep: Code,
) -> Tempered:
    key_start, key_moves = jax.random.split(key)
    if traces is None:
        fixed, model = as_given(target.constraints), target.state_space()

        def draw(key):
            out = model.run(key, fixed, target.args)
            return written(out.trace())

        traces = jax.vmap(draw)(jax.random.split(key_start, tempering.exponents.shape[0]))
    ladder = tempering.start(traces)

    def move(ladder, i):
        ladder = tempering.step(jax.random.fold_in(key_moves, i), target, ladder)
        kept = keep(jax.tree.map(lambda x: x[-1], ladder.traces.choices))
        heat = _log_likelihood(target, ladder.traces)
        return ladder, (kept, heat, ladder.swapped, ladder.acceptance)

    ladder, (kept, heat, swapped, rates) = jax.lax.scan(move, ladder, jnp.arange(moves))
    swaps, rates = jnp.nanmean(swapped, axis=0), jnp.mean(rates, axis=0)
    return Tempered(tempering.exponents, kept, heat, swaps, rates, ladder)
