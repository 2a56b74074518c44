"""What a run has spent, counted alike for every algorithm, so that methods meet at equal cost."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from ..ppl.code import Code
from ..ppl.combinators.branches import any_member
from ..ppl.compiled import compiled
from ..ppl.target import Target, as_target
from .batch import over_targets
from .importance import Importance
from .particles import Particles
from .population import get_row
from .smc import SMC


def _count(x: Any) -> np.ndarray:
    return np.asarray(x, np.int64)


class Ledger(eqx.Module):
    """What was spent; of a batch of runs one number each (`seconds` and `passes` are shared).

    - `tokens`: symbols written, those of particles that were later discarded included.
    - `moves`: times that the model advanced one particle (a token, or a step of many tokens).
      Particles that have finished cost nothing; such of weight zero are moved and count.
    - `passes`: times that the model advanced all particles at once: what bounds the time on a
      machine with room for the whole population.
    - `rewards`: times that a text was scored.
    - `resamplings`: how often particles were replaced by copies of others.
    - `seconds`: wall time, compilation included in a first call; NaN where nobody looked.
    """

    tokens: np.ndarray = eqx.field(converter=_count, default=0)  # pyright: ignore
    moves: np.ndarray = eqx.field(converter=_count, default=0)  # pyright: ignore
    passes: np.ndarray = eqx.field(converter=_count, default=0)  # pyright: ignore
    rewards: np.ndarray = eqx.field(converter=_count, default=0)  # pyright: ignore
    resamplings: np.ndarray = eqx.field(converter=_count, default=0)  # pyright: ignore
    seconds: float = float("nan")

    def __add__(self, other: "Ledger") -> "Ledger":
        """Both, one after the other."""
        return Ledger(*(a + b for a, b in zip(_fields(self), _fields(other), strict=True)))

    def total(self) -> "Ledger":
        """One ledger of a batch that ran at once: sums, and the passes of the longest run."""
        *counts, seconds = _fields(self)
        tokens, moves, passes, rewards, resamplings = counts
        return Ledger(
            tokens.sum(), moves.sum(), passes.max(), rewards.sum(), resamplings.sum(), seconds
        )

    def __repr__(self) -> str:
        if self.tokens.ndim:
            return f"Ledger(of {self.tokens.shape[0]} runs, total={self.total()!r})"
        names = ("tokens", "moves", "passes", "rewards", "resamplings")
        counts = ", ".join(f"{name}={int(getattr(self, name))}" for name in names)
        return f"Ledger({counts}, seconds={self.seconds:.3g})"


def _fields(ledger: Ledger) -> tuple:
    return (
        ledger.tokens,
        ledger.moves,
        ledger.passes,
        ledger.rewards,
        ledger.resamplings,
        ledger.seconds,
    )


def ledger(result: Any) -> Ledger:
    """What a result has cost, where the result knows it: any search, or a run without resampling.

    Survivors' lengths are not what was spent when others were discarded, so a particle filter is
    run by `metered`, which counts as it goes. Each move counts as one token and one scoring.
    """
    own = getattr(result, "ledger", None)
    if isinstance(own, Ledger):
        return own
    if not isinstance(result, Particles):
        raise TypeError(
            f"no costs are known of a {type(result).__name__}: give the result of a search or of a "
            "run without resampling, or run the algorithm by inference.metered"
        )
    if bool(np.any(result.resampled)):
        raise ValueError(
            "particles were discarded in this run, and what they had written is not in its result: "
            "run it as inference.metered(algorithm, key, target), which returns the result and its "
            "ledger"
        )
    lengths = np.asarray(result.lengths)
    moves = lengths.sum(axis=-1)
    return Ledger(moves, moves, lengths.max(axis=-1), moves, np.zeros_like(moves))


def metered(
    algorithm: SMC | Importance,
    key: PRNGKeyArray,
    target: Any,
    *,
    tokens: Callable | None = None,
    rewards: Callable | None = None,
    extra: int | None = None,
    many: bool = False,
) -> tuple[Particles, Ledger]:
    """The particles of `algorithm.run(key, target)`, and what they have cost.

    - `tokens(choices)`: how many symbols one move wrote, from the move's choices (a jax scalar);
      by default 1. A model whose steps are lines counts its tokens here.
    - `rewards(choices)`: how many scorings one move took; by default 1.
    - `extra`: moves that a look-ahead or a rejuvenation kernel takes beside each move of a
      particle; must be given if there is one. They count as tokens of an average move.
    - `many`: args and constraints have a leading batch axis, as in `run_many`; the ledger then
      counts each run.

    The particles are those of an unmetered run, up to last bits.
    """
    from time import perf_counter

    smc = algorithm.smc if isinstance(algorithm, Importance) else algorithm
    if extra is None and (smc.kernel is not None or smc.twist is not None):
        raise ValueError(
            "this filter has a kernel or a look-ahead, whose own moves cannot be seen from outside:"
            " say how many it takes a particle and step with extra="
        )
    if (tokens or rewards) and not smc.record.with_choices:
        raise ValueError(
            "tokens= and rewards= read the choices of each move: use record=Record.choices()"
        )
    counters = tuple(None if f is None else Code(f) for f in (tokens, rewards))
    start = perf_counter()
    target = as_target(target)
    run = _metered_many if many else _metered
    particles, spent = jax.block_until_ready(run(smc, key, target, counters))
    seconds = perf_counter() - start
    moves, tokens_, rewards_, passes = (np.asarray(x) for x in spent)
    factor = 1 + (extra or 0)
    counts = (tokens_ * factor, moves * factor, passes * factor, rewards_)
    return particles, Ledger(*counts, np.asarray(particles.resampled).sum(-1), seconds)


@compiled
def _metered(smc: SMC, key: PRNGKeyArray, target: Target, counters: tuple):
    driver = smc.driver(target)
    _, fixed = driver.fk.split(target.constraints)

    def going(carry):
        t, population, _ = carry
        return (t < driver.length) & any_member(~driver.all_done(population))

    def go(carry):
        t, before, spent = carry
        given = get_row(fixed, t)
        after = driver.step(jax.random.fold_in(key, t + 1), before, t, given, None)
        moved = after.lengths - before.lengths[after.ancestors[t]]  # one for who was not finished
        counted = [moved]
        for counter in counters:
            each = moved
            if counter is not None:
                row = jax.tree.map(lambda x: x[t], after.store["choices"])
                each = moved * jax.vmap(counter)(row).astype(jnp.int32)
            counted.append(each)
        sums = [jnp.sum(x) for x in counted]
        # A batch goes on until its last run is over.
        passes = jnp.any(moved > 0).astype(jnp.int32)
        return t + 1, after, tuple(a + b for a, b in zip(spent, [*sums, passes], strict=True))

    zeros = (jnp.int32(0),) * 4
    start = (jnp.int32(0), driver.init(key), zeros)
    _, population, spent = jax.lax.while_loop(going, go, start) if driver.length else start
    return driver.finish(population), spent


@compiled
def _metered_many(smc: SMC, key: PRNGKeyArray, targets: Target, counters: tuple):
    return over_targets(lambda k, target: _metered(smc, k, target, counters), key, targets)
