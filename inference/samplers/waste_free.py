"""Waste-free sequential Monte Carlo.

Dau and Chopin (2022), "Waste-free sequential Monte Carlo", Algorithm 1: of N = M P particles only M
are resampled, each starts a chain of P - 1 moves, and all N points are the next population.
"""

from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ...ppl.algorithm import Algorithm
from ...ppl.code import Code
from ...ppl.compiled import compiled
from ...ppl.target import Target, as_target
from ..mapping import Mapping, Vmap
from ..mcmc.kernel import Chain, Kernel
from ..particles import Particles, log_mean_exp
from ..resampling import Resampler, Systematic
from .climb import increments, through
from .cloud import NO_CONDITIONAL, Cloud, Measured, finish, thrown
from .mover import Mover, weigh
from .stages import AdaptiveStages, Stages, as_stages
from .wrapped import as_proposal, proposed

_RESAMPLE, _MOVE = 0xFFFFFFFE, 0xFFFFFFFD


class WasteFree(Algorithm):
    """`Tempered` that keeps every state of every chain: M = n_particles / chain_length chains.

    Each stage weighs all particles, resamples M of them (always), and runs chains of `chain_length`
    states from these; no state is thrown away. The other fields are those of `Tempered`.

    Law: as of `Tempered`: properly weighted, with Z-hat unbiased for exponents fixed in advance and
    invariant kernels. Long chains (M small against the length) are what the method is made for.
    """

    n_particles: int = eqx.field(static=True)
    kernel: Kernel
    chain_length: int = eqx.field(static=True)
    exponents: Stages = eqx.field(default_factory=AdaptiveStages, converter=as_stages)
    resampler: Resampler = eqx.field(default_factory=Systematic)
    proposal: Any = eqx.field(default=None, converter=as_proposal)
    tune: Code | None = eqx.field(default=None, converter=lambda f: None if f is None else Code(f))
    mapping: Mapping = eqx.field(default_factory=Vmap)

    def __check_init__(self):
        n, length = self.n_particles, self.chain_length
        if length < 1 or n < 1 or n % length:
            raise ValueError(
                f"WasteFree runs n_particles / chain_length chains: {n} particles are no multiple "
                f"of chains of {length}"
            )

    def run(self, key: PRNGKeyArray, target: Any, *, throw: bool = False) -> Particles:
        """The weighted population; histories are by stage."""
        return self.measured(key, target, throw=throw).particles

    def measured(self, key: PRNGKeyArray, target: Any, *, throw: bool = False) -> Measured:
        """The population, and a standard error of log Z-hat from this run.

        The sum over stages of the variance between chains of the mean potential (section 4 of the
        paper, with whole chains as batches). It takes the chains to be independent, so that it is
        right for long chains, and low where chains are too short to forget a shared start.
        """
        result = _run(self, key, as_target(target))
        thrown(result.particles, throw)
        return result

    def run_conditional(self, key, target, retained):
        """An error: not built."""
        raise NotImplementedError(NO_CONDITIONAL)

    def random_weighted(self, key, target):
        """An error: not built."""
        raise NotImplementedError(NO_CONDITIONAL)

    def estimate_logpdf(self, key, target, choices):
        """An error: not built."""
        raise NotImplementedError(NO_CONDITIONAL)


@compiled
def _run(sampler: WasteFree, key: PRNGKeyArray, target: Target) -> Measured:
    path, stages = proposed(target, sampler.proposal), sampler.exponents
    mover = Mover(sampler.kernel, sampler.resampler, sampler.mapping, sampler.tune)
    cloud = mover.begin(key, path.tempered(0.0), sampler.n_particles, stages.count)

    def stage(carry, exponent):
        cloud, variance = carry
        cloud = weigh(cloud, *increments(path, cloud, exponent))
        ratios = jnp.exp(cloud.log_weights - log_mean_exp(cloud.log_weights))
        chains = ratios.reshape(-1, sampler.chain_length)
        first = jnp.var(ratios) / ratios.shape[0]  # independent draws
        later = jnp.var(jnp.mean(chains, 1)) / max(chains.shape[0] - 1, 1)
        variance += jnp.where(cloud.stage == 0, first, later)
        return _chains(sampler, mover, key, cloud, path.tempered(exponent)), variance

    carry = through(stage, (cloud, jnp.zeros_like(cloud.exponent)), path, stages)
    return Measured(finish(carry[0], target), jnp.sqrt(carry[1]))


def _chains(
    sampler: WasteFree, mover: Mover, key: PRNGKeyArray, cloud: Cloud, target: Target
) -> Cloud:
    """Resample the starts and run their chains."""
    n, length = sampler.n_particles, sampler.chain_length
    key = jax.random.fold_in(key, cloud.stage + 1)
    key_resample, key_move = (jax.random.fold_in(key, i) for i in (_RESAMPLE, _MOVE))
    kernel, s = mover.tuned(cloud), cloud.stage
    starts = thinned(key_resample, sampler.resampler, cloud.log_weights, n // length)

    def one(i, trace):
        """The states of a chain after its first, and their mean acceptance."""
        key = jax.random.fold_in(key_move, i)
        start = Chain(trace, None, jnp.zeros(()))
        walk, state = kernel.walk(jax.random.fold_in(key, 0), target, start)

        def step(state, j):
            state, rate = walk.step(jax.random.fold_in(key, j), state)
            return state, (state, rate)

        _, (states, rates) = jax.lax.scan(step, state, jnp.arange(1, length))
        return jax.vmap(lambda state: walk.chain(state).trace)(states), jnp.mean(rates)

    def joined(a, b):
        rows = jnp.concatenate([a[:, None], b], axis=1)
        return rows.reshape(n, *rows.shape[2:])

    traces, rates = jax.tree.map(lambda x: x[starts], cloud.traces), jnp.nan
    if length > 1:
        later, rates = mover.mapping.over(one, jnp.arange(n // length, dtype=jnp.int32), traces)
        traces = jax.tree.map(joined, traces, later)
    return replace(
        cloud,
        traces=traces,
        log_weights=jnp.full_like(cloud.log_weights, log_mean_exp(cloud.log_weights)),
        stage=s + 1,
        numbers=eqx.filter(kernel, eqx.is_array),
        ancestors=cloud.ancestors.at[s].set(jnp.repeat(starts, length)),
        resampled=cloud.resampled.at[s].set(True),
        acceptance=cloud.acceptance.at[s].set(jnp.mean(rates)),
    )


def thinned(
    key: PRNGKeyArray, resampler: Resampler, log_weights: Float[Array, "n"], m: int
) -> Int[Array, "m"]:
    """Ancestors, m of n, E[#{j: a[j] = i}] = m W[i]: every (n / m)-th slot from a random one.

    Of `Systematic` this is systematic resampling of m.
    """
    key_draw, key_offset = jax.random.split(key)
    every = log_weights.shape[0] // m
    ancestors = resampler.ancestors(key_draw, log_weights)
    offset = jax.random.randint(key_offset, (), 0, every, dtype=jnp.int32)
    return ancestors[offset + every * jnp.arange(m, dtype=jnp.int32)]
