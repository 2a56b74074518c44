"""`vi.fit`: stochastic gradient ascent on an objective, in compiled chunks."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ...ppl.code import Fingerprints
from ..checkpoint import Checkpoints, content_digest
from ..chunks import interrupts
from ..progress import bar
from .baselines import Baseline
from .estimator import value_and_grad
from .objective import Objective
from .training import (
    FitStatus,
    Trainer,
    TrainState,
    advance,
    as_arrays,
    estimator,
    split_params,
)


class Fit(eqx.Module):
    """What training gave.

    - `params`: after the last step taken; `best`: after the chunk of `every` steps whose mean
      objective was the highest, `best_value` (nats for an ELBO). Frozen parts are those given.
    - `values` [steps]: the estimated objective at each step, NaN or infinite where not taken.
    - `status`: ok, stopped by an interrupt, or the first step and leaf that was not finite.
    - `state`: give it to another `fit` to go on: optimizer, baseline and number of the step.
    """

    params: PyTree
    best: PyTree
    best_value: Float[Array, ""]
    values: Float[np.ndarray, " steps"]
    status: FitStatus
    state: TrainState

    def __repr__(self) -> str:
        last = float(self.values[-1]) if len(self.values) else float("nan")
        return (
            f"Fit({len(self.values)} steps, last {last:.4g}, best {float(self.best_value):.4g}, "
            f"{self.status!r})"
        )


@dataclasses.dataclass(frozen=True)
class FitReport:
    """Training after `step` of `length` steps.

    - `value`: mean objective of the last chunk; `best`: the highest such mean.
    - `steps_done`, `seconds`: of this call, compilation included.
    - `over`: early stopping, or no step of the chunk was taken.
    - `params()`: the parameters now; ask before the next chunk, which uses their memory.
    """

    step: int
    length: int
    steps_done: int
    seconds: float
    value: float
    best: float
    over: bool
    params: Callable[[], PyTree] = dataclasses.field(repr=False, compare=False)


def fit(
    key: PRNGKeyArray,
    objective: Any,
    params: PyTree,
    args: tuple = (),
    *,
    optimizer: optax.GradientTransformation | None = None,
    steps: int = 1000,
    strategies: Any = None,
    samples: int = 1,
    baseline: Baseline | None = None,
    allow_biased: bool = False,
    batches: Callable | None = None,
    trainable: Any = None,
    every: int = 100,
    patience: int | None = None,
    checkpoint: str | os.PathLike | None = None,
    state: TrainState | None = None,
    callback: Callable[[FitReport], Any] | None = None,
    progress: bool = True,
    throw: bool = False,
) -> Fit:
    """Maximize E[objective] over `params` by stochastic gradients; heuristic: a local maximum.

    - `objective`: a `vi.objective`, whose gradient `vi.value_and_grad` estimates with
      `strategies`, `samples`, `baseline` and `allow_biased`; or an estimator: what
      `vi.value_and_grad` returns, or a function `(key, params, *args) -> (value, gradient)`, the
      gradient with the structure of `params`.
    - `params`: any tree (a guide, a network of Equinox, the state of a Flax one, a dict);
      `trainable`, a filter in Equinox's manner (a tree of booleans or a function of a leaf), says
      which arrays of floats are trained (all), the rest stays.
    - `batches(key, *args) -> tuple`: the objective's arguments at each step, made on the device,
      for example a random part of the data in `args`; see `vi.rows`.
    - `optimizer`: Optax's; default `optax.adam(1e-2)`.
    - `every`: steps in one compiled chunk; in between come progress, `callback(report)` and a
      checkpoint. `patience`: stop when so many steps brought no higher mean over a chunk.
    - `checkpoint`: a folder, written after each chunk, atomically; a call that finds one goes on
      from it, to the same bytes as if it had never been interrupted (with more `steps` too). One of
      another run is refused.
    - `state`: `Fit.state` of a run before, to make `steps` more steps; `params` gives what is
      frozen.

    A step at which the value, the gradient or a new parameter is not finite is not taken; the
    status says at which step and leaf that first was, and after a chunk without a step taken
    training ends. `throw=True` raises `InferenceError` unless the status is ok.

    Raises:
        ValueError: nothing to train, or a gradient that does not fit the parameters.
        CheckpointError: the checkpoint is of another run, or unreadable.
    """
    if every < 1 or steps < 0:
        raise ValueError(f"fit needs every >= 1 and steps >= 0, got {every} and {steps}")
    if not isinstance(args, tuple):
        raise ValueError(f"args is a tuple of the objective's arguments; write args=({args!r},)")
    options = {
        "strategies": strategies,
        "samples": samples,
        "baseline": baseline,
        "allow_biased": allow_biased,
    }
    gives, carried = estimator(_estimated(objective, options))
    trainer = Trainer(gives, optimizer or optax.adam(1e-2), batches)
    trained, frozen = split_params(as_arrays(params), trainable)
    args = as_arrays(args)
    made = jax.tree.map(jnp.copy, state or trainer.start(trained, carried))
    first, values, over, stopped = int(made.step), np.zeros(0, made.best_value.dtype), False, False
    store = None
    if checkpoint is not None:
        store = _Store(checkpoint, _identity(trainer, key, made, frozen, args, every), made)
    try:
        with (
            interrupts() as interrupted,
            bar(steps, _numbers) if progress else contextlib.nullcontext() as show,
        ):
            if store is not None and (found := store.newest()) is not None:
                _, (made, values), over = found
                values = np.asarray(values)
                store.forget_after(len(values))
            began, resumed = time.perf_counter(), len(values)
            while len(values) < steps and not over:
                if interrupted:
                    stopped = True
                    break
                n, skipped = min(every, steps - len(values)), int(made.status.skipped)
                stop = jnp.int32(first + len(values) + n)
                fixed = (Fingerprints.of((trainer, frozen, args)), trainer, key, frozen, args)
                made, new = jax.block_until_ready(_advance((*fixed, stop, every), made))
                new = np.asarray(new)[:n]
                values = np.concatenate([values, new])
                over = int(made.status.skipped) - skipped == n
                over = over or (patience is not None and int(made.waited) >= patience)
                if store is not None:
                    store.save(len(values), (made, jnp.asarray(values)), over)
                good = new[np.isfinite(new)]
                report = FitReport(
                    step=len(values),
                    length=steps,
                    steps_done=len(values) - resumed,
                    seconds=time.perf_counter() - began,
                    value=float(good.mean()) if len(good) else float("nan"),
                    best=float(made.best_value),
                    over=over,
                    params=lambda s=made: eqx.combine(s.trained, frozen),
                )
                if show is not None:
                    show(report)
                if callback is not None:
                    callback(report)
    finally:
        if store is not None:
            store.close()
    status = made.status.stopped(len(values)) if stopped else made.status
    now, best = eqx.combine(made.trained, frozen), eqx.combine(made.best, frozen)
    if throw:
        status.throw()
    return Fit(now, best, made.best_value, values, status, made)


@eqx.filter_jit(donate="all-except-first")
def _advance(fixed: tuple, state: TrainState) -> tuple[TrainState, Float[Array, " every"]]:
    """The next chunk; the state given is used up, so that there is never a second one."""
    _, trainer, key, frozen, args, stop, every = fixed
    return advance(trainer, key, state, frozen, args, stop, every)


def _estimated(objective: Any, options: dict[str, Any]) -> Any:
    """An objective as the estimator of its gradient; an estimator as it is."""
    if isinstance(objective, Objective):
        return value_and_grad(objective, **options)
    if options["strategies"] is not None or options["samples"] != 1 or options["baseline"]:
        raise ValueError(
            "strategies, samples and baseline are for a vi.objective, and an estimator has settled "
            "them: decorate the objective with vi.objective, or give them to vi.value_and_grad"
        )
    if not callable(objective):
        raise ValueError(
            f"fit takes a vi.objective or a function (key, params, *args) -> (value, gradient), "
            f"got {type(objective).__name__}"
        )
    return objective


class _Store(Checkpoints):
    """Checkpoints of training: the state, and the values so far, one a step."""

    def __init__(self, path: str | os.PathLike, run: dict[str, str], state: TrainState):
        self._state = jax.eval_shape(lambda: state)
        super().__init__(path, run, self._state)

    def _population(self, step: int, checksum: int) -> Any:
        values = jax.ShapeDtypeStruct((step,), self._state.best_value.dtype)
        self._like = (self._state, values)
        return super()._population(step, checksum)


def _identity(
    trainer: Trainer, key: PRNGKeyArray, start: TrainState, frozen: Any, args: tuple, every: int
) -> dict[str, str]:
    """What a training run is: equal for equal results; without the number of steps."""
    return {
        "every": str(every),
        "key": content_digest(key),
        "objective, strategies or baseline": content_digest((trainer.estimator, start.baseline)),
        "optimizer": content_digest((trainer.init_optimizer, trainer.update_optimizer)),
        "batches": content_digest(trainer.batches),
        "args": content_digest(args),
        "parameters at the start": content_digest((start, frozen)),
    }


def _numbers(report: FitReport) -> str:
    return f"objective {report.value:.4g}  best {report.best:.4g}"


class Rows(eqx.Module):
    """See `rows`."""

    size: int = eqx.field(static=True)

    def __call__(self, key: PRNGKeyArray, *args: PyTree) -> tuple:
        """The same random rows of every array in `args`."""
        sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(args)}
        if len(sizes) != 1 or () in sizes:
            raise ValueError(
                f"rows takes arguments that are arrays with one first axis, got {sorted(sizes)}: "
                "write batches(key, *args) yourself for anything else"
            )
        index = jax.random.randint(key, (self.size,), 0, sizes.pop()[0])
        return jax.tree.map(lambda x: x[index], args)


def rows(size: int) -> Rows:
    """For `fit(batches=)`: `size` rows drawn uniformly, with replacement, from the data in `args`.

    A likelihood of the rows times (all rows / size) is then unbiased for that of all; the
    objective has to scale it.
    """
    return Rows(size)
