"""Long runs in compiled chunks; in between the host shows progress, saves, may stop."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from ..ppl.code import Fingerprints
from ..ppl.compiled import compiled
from ..ppl.state_space import Keep, StateSpace
from ..ppl.status import BUDGET, OK
from ..ppl.target import Target, as_target
from .particles import Particles, log_mean_exp
from .population import Population
from .progress import ChunkReport, bar
from .resampling import effective_sample_size
from .smc import SMC


def run_in_chunks(
    smc: SMC,
    key: PRNGKeyArray,
    target: Any,
    *,
    steps: int = 16,
    checkpoint: str | os.PathLike | None = None,
    progress: bool = False,
    stop: Callable[[ChunkReport], Any] | None = None,
    callback: Callable[[ChunkReport], Any] | None = None,
    throw: bool = False,
) -> Particles:
    """The population of `smc.run(key, target)`, `steps` steps at a time in one compiled program.

    Law: equal to `smc.run`, up to last bits where XLA compiles the shorter loop otherwise. A run
    that was stopped or killed and is resumed is bit-identical to one that was not.

    - `checkpoint`: a folder. A checkpoint is written there after every chunk, atomically; a call
      that finds one goes on from it, and one of another key, model, data or algorithm is refused.
      It stays after the run, which is then only read.
    - `stop(report)`: true stops the run after this chunk; so does an interrupt (a second one
      raises). The result is the weighted population after that many steps, later choices zero, with
      status BUDGET; `at_length` is not applied to it.
    - `callback(report)`: called after every chunk, when its checkpoint is on disk.
    - `progress`: show a bar.

    The run ends early when every particle is done, or when it failed; `throw=True` raises
    `InferenceError` unless the status is ok.

    Raises:
        CheckpointError: the checkpoint is of another run, or unreadable.
    """
    if steps < 1:
        raise ValueError(f"a chunk has at least one step, got steps={steps}")
    target = as_target(target)
    length = target.state_space().length
    at, store, stopped = 0, None, False
    if checkpoint is not None:
        from .checkpoint import Checkpoints, identity

        like = jax.eval_shape(lambda k, s, t: s.driver(t).init(k), key, smc, target)
        store = Checkpoints(checkpoint, identity(smc, key, target, like), like)
    try:
        with (
            interrupts() as interrupted,
            bar(length) if progress else contextlib.nullcontext() as show,
        ):
            if store is not None and (found := store.newest()) is not None:
                at, population, over = found
                store.forget_after(at)
            else:
                population, numbers = _init(smc, key, target)
                over = bool(numbers["over"])
            steps = min(steps, length - at)
            began, first = time.perf_counter(), at
            while at < length and not over:
                if stopped or interrupted:
                    stopped = True
                    break
                fixed = (Fingerprints.of((smc, target)), smc, key, target, jnp.int32(at), steps)
                population, numbers = jax.block_until_ready(_advance(fixed, population))
                at, over = min(at + steps, length), bool(numbers["over"])
                if store is not None:
                    store.save(at, population, over)
                report = ChunkReport(
                    step=at,
                    length=length,
                    steps_done=at - first,
                    seconds=time.perf_counter() - began,
                    n_particles=smc.n_particles,
                    ess=float(numbers["ess"]),
                    log_evidence=float(numbers["log_evidence"]),
                    resampled=int(numbers["resampled"]),
                    over=over,
                    particles=lambda p=population, t=at: _finish(
                        smc, target, p, jnp.int32(t), True
                    ),
                )
                if show is not None:
                    show(report)
                if callback is not None:
                    callback(report)
                stopped = stop is not None and bool(stop(report))
    finally:
        if store is not None:
            store.close()
    particles = _finish(smc, target, population, jnp.int32(at), stopped)
    if throw:
        particles.status.throw()
    return particles


@compiled
def _init(smc: SMC, key: PRNGKeyArray, target: Target) -> tuple[Population, dict[str, Array]]:
    population = smc.driver(target).init(key)
    return population, _measure(smc, target, population)


def _measure(smc: SMC, target: Target, population: Population) -> dict[str, Array]:
    return {
        "ess": effective_sample_size(population.log_weights),
        "log_evidence": log_mean_exp(population.log_weights),
        "resampled": jnp.sum(population.resampled),
        "over": smc.driver(target).all_done(population) | (population.status.code != OK),
    }


@eqx.filter_jit(donate="all-except-first")
def _advance(fixed: tuple, population: Population) -> tuple[Population, dict[str, Array]]:
    """The next steps; the population given is used up, so that there is never a second one."""
    _, smc, key, target, start, steps = fixed
    population = smc.driver(target).advance(key, population, start, steps)
    return population, _measure(smc, target, population)


@compiled
def _finish(
    smc: SMC, target: Target, population: Population, step: Int[Array, ""], stopped: bool
) -> Particles:
    if stopped:
        status = population.status.then(True, BUDGET, step)
        population = eqx.tree_at(lambda p: p.status, population, status)
        if isinstance(target.model, StateSpace):
            ending = target.model.at_length
            target = eqx.tree_at(
                lambda t: t.model.at_length, target, Keep(), is_leaf=lambda x: x is ending
            )
    return smc.driver(target).finish(population)


@contextlib.contextmanager
def interrupts() -> Iterator[list]:
    """Turn the first interrupt into an entry of a list, which is looked at between chunks."""
    seen: list = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return
    before = signal.getsignal(signal.SIGINT)

    def note(number, frame):
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)
