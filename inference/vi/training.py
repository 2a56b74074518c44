"""One step of training and a compiled run of many: gradient, optimizer, guard against NaN.

Steepest ascent by an Optax optimizer on an estimate of the gradient (Robbins and Monro 1951).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ...ppl.code import Code
from ...ppl.distributions import third_party
from ...ppl.status import BUDGET, OK, Status
from .baselines import Running
from .estimator import Surrogate, ValueAndGrad

NOT_FINITE = 201
"""Status code of training alone: the objective or a gradient was infinite or NaN."""


class FitStatus(Status):
    """The status of training: ok, stopped, or which number was not finite, first at what step.

    `sites`: "the objective", then the trained leaves by path. `skipped`: steps that were not taken.
    """

    skipped: Int[Array, ""] = eqx.field(default_factory=lambda: jnp.int32(0))

    def stopped(self, step: int) -> "FitStatus":
        """This status or, if ok, that of a run stopped after so many steps."""
        new = self.then(True, BUDGET, step)
        return FitStatus(new.code, new.step, new.site, self.sites, self.skipped)

    @property
    def message(self) -> str:
        """What happened and what to do."""
        code, step = int(self.code), int(self.step)
        if code == BUDGET:
            return f"training was stopped after {step} steps: give its checkpoint again to go on"
        if code != NOT_FINITE:
            return "ok"
        site = self.sites[int(self.site)]
        what = site if int(self.site) == 0 else f"the gradient (or the update) of {site}"
        return (
            f"{what} was not finite at step {step}; {int(self.skipped)} step(s) were not taken and "
            "the last good parameters were kept. Look for a guide that draws what the target "
            "calls impossible (log density -inf), a scale that tends to 0 or overflows, or a step "
            "size that is too large (optax.clip_by_global_norm before the optimizer bounds it)"
        )


class TrainState(eqx.Module):
    """What one step hands to the next; all of it is in a checkpoint.

    `best`: the parameters after the chunk with the highest mean objective, `best_value`; `waited`:
    steps since. `baseline`: state of a baseline that is carried, else None.
    """

    step: Int[Array, ""]
    trained: PyTree
    optimizer: PyTree
    baseline: PyTree
    best: PyTree
    best_value: Float[Array, ""]
    waited: Int[Array, ""]
    status: FitStatus


class Plain(eqx.Module):
    """An estimator of the user's: `fn(key, params, *args) -> (value, gradient)`."""

    fn: Any

    def gradient(self, key: PRNGKeyArray, trained: PyTree, frozen: PyTree, _: None, args: tuple):
        """Value, gradient at the trained leaves, and what is carried: nothing."""
        value, grads = self.fn(key, eqx.combine(trained, frozen), *args)
        return value, matched(grads, trained), None


class ByStrategies(eqx.Module):
    """The estimator of an objective without its `Running` baselines, which are carried."""

    rest: Surrogate

    def gradient(
        self, key: PRNGKeyArray, trained: PyTree, frozen: PyTree, carried: PyTree, args: tuple
    ):
        """Value, gradient at the trained leaves, and the baselines told of the value."""
        surrogate = eqx.combine(carried, self.rest)

        def loss(trained):
            return surrogate(key, eqx.combine(trained, frozen), *args)

        value, grads = eqx.filter_value_and_grad(loss)(trained)
        return value, grads, running(surrogate.after(value))[0]


def running(surrogate: Surrogate) -> tuple[PyTree, Surrogate]:
    """The `Running` baselines of an estimator, and the rest of it."""

    def is_running(x):
        return isinstance(x, Running)

    spec = jax.tree.map(is_running, surrogate, is_leaf=is_running)
    return eqx.partition(surrogate, spec)


def estimator(objective: Any) -> tuple[Plain | ByStrategies, PyTree]:
    """What gives gradients, and what it carries from step to step."""
    if isinstance(objective, ValueAndGrad):
        objective = objective.surrogate
    if not isinstance(objective, Surrogate):
        return Plain(_callable(objective)), None
    carried, rest = running(objective)
    return ByStrategies(rest), carried


class Trainer(eqx.Module):
    """How to train: the estimator of value and gradient, the optimizer, the minibatches."""

    estimator: Plain | ByStrategies
    init_optimizer: Code
    update_optimizer: Code
    batches: Any

    def __init__(self, estimator: Any, optimizer: Any, batches: Any = None):
        optimizer = optax.with_extra_args_support(optimizer)
        self.estimator, self.batches = estimator, batches and _callable(batches)
        self.init_optimizer, self.update_optimizer = Code(optimizer.init), Code(optimizer.update)

    def start(self, trained: PyTree, carried: PyTree) -> TrainState:
        """The state before the first step; shares no memory with the parameters given."""
        state = jax.tree.map(_strong, third_party(self.init_optimizer)(trained))
        paths = jax.tree_util.tree_leaves_with_path(trained)
        names = ("the objective", *(f"params{jax.tree_util.keystr(path)}" for path, _ in paths))
        status = FitStatus(jnp.int32(OK), jnp.int32(0), jnp.int32(0), names, jnp.int32(0))
        low = jnp.asarray(-jnp.inf, dtype=float)
        zero = jnp.int32(0)
        state = TrainState(zero, trained, state, carried, trained, low, zero, status)
        return jax.tree.map(lambda x: jnp.array(x, copy=True), state)

    def step(
        self, key: PRNGKeyArray, state: TrainState, frozen: PyTree, args: tuple
    ) -> tuple[TrainState, Float[Array, ""]]:
        """One step of ascent; not taken unless value, gradient and new parameters are finite."""
        key_batch, key_estimate = jax.random.split(jax.random.fold_in(key, state.step))
        if self.batches is not None:
            args = self.batches(key_batch, *args)
            if not isinstance(args, tuple):
                raise TypeError(
                    "batches(key, *args) returns the tuple of the objective's arguments, got "
                    f"{type(args).__name__}: write (batch,)"
                )
        value, grads, carried = self.estimator.gradient(
            key_estimate, state.trained, frozen, state.baseline, args
        )
        value = jnp.asarray(value, dtype=float)
        descent = jax.tree.map(jnp.negative, grads)
        updates, optimizer = third_party(self.update_optimizer)(
            descent, state.optimizer, state.trained, value=-value
        )
        trained = third_party(optax.apply_updates)(state.trained, updates)
        pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(trained), strict=True)
        finite = [jnp.isfinite(value)]
        finite += [jnp.all(jnp.isfinite(g)) & jnp.all(jnp.isfinite(p)) for g, p in pairs]
        bad = ~jnp.stack(finite)
        taken = ~jnp.any(bad)

        def pick(new, old):
            return jnp.where(taken, jnp.asarray(new).astype(old.dtype), old)

        new, old = (trained, optimizer, carried), (state.trained, state.optimizer, state.baseline)
        trained, optimizer, carried = jax.tree.map(pick, new, old)
        status = _noted(state.status, ~taken, state.step, jnp.argmax(bad))
        state = eqx.tree_at(
            lambda s: (s.step, s.trained, s.optimizer, s.baseline, s.status),
            state,
            (state.step + 1, trained, optimizer, carried, status),
            is_leaf=lambda x: x is None,
        )
        return state, value


def _callable(fn: Any) -> Any:
    return fn if isinstance(fn, eqx.Module) else Code(fn)


def _strong(x):
    x = jnp.asarray(x)
    return jax.lax.convert_element_type(x, x.dtype)


def _noted(status: FitStatus, bad: Any, step: Any, leaf: Any) -> FitStatus:
    new = status.then(bad, NOT_FINITE, step, leaf)
    skipped = status.skipped + bad.astype(jnp.int32)
    return FitStatus(new.code, new.step, new.site, status.sites, skipped)


def matched(grads: PyTree, trained: PyTree) -> PyTree:
    """The gradient at the trained leaves; it may have more, but none may lack."""
    by_path = dict(jax.tree_util.tree_leaves_with_path(grads))
    leaves = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(trained):
        grad = by_path.get(path)
        if grad is None or jnp.shape(grad) != jnp.shape(leaf):
            found = "none" if grad is None else f"shape {jnp.shape(grad)}"
            raise ValueError(
                f"the estimator's gradient of params{jax.tree_util.keystr(path)} has {found}, the "
                f"parameter shape {jnp.shape(leaf)}: return a gradient for every trained leaf, "
                "or leave this one out with trainable="
            )
        leaves.append(jnp.asarray(grad).astype(leaf.dtype))
    return jax.tree.structure(trained).unflatten(leaves)


def advance(
    trainer: Trainer,
    key: PRNGKeyArray,
    state: TrainState,
    frozen: PyTree,
    args: tuple,
    stop: Int[Array, ""],
    every: int,
) -> tuple[TrainState, Float[Array, " every"]]:
    """Steps up to `stop` (at most `every`), then the best so far; values [every], the rest NaN."""
    start = state.step

    def body(i, carry):
        state, values = carry
        state, value = trainer.step(key, state, frozen, args)
        return state, values.at[i - start].set(value)

    empty = jnp.full((every,), jnp.nan)
    state, values = jax.lax.fori_loop(start, stop, body, (state, empty))
    good = jnp.isfinite(values)
    n = jnp.sum(good)
    mean = jnp.sum(jnp.where(good, values, 0.0)) / jnp.maximum(n, 1).astype(values.dtype)
    better = (n > 0) & (mean > state.best_value)
    best = jax.tree.map(lambda a, b: jnp.where(better, a, b), state.trained, state.best)
    waited = jnp.where(better, jnp.zeros_like(stop), state.waited + (stop - start))
    state = eqx.tree_at(
        lambda s: (s.best, s.best_value, s.waited),
        state,
        (best, jnp.where(better, mean, state.best_value), waited),
        is_leaf=lambda x: x is None,
    )
    return state, values


def split_params(params: PyTree, trainable: Any) -> tuple[PyTree, PyTree]:
    """Parameters split into what is trained (inexact arrays that `trainable` allows) and the rest.

    Raises:
        ValueError: nothing is left to train.
    """
    wanted = params if trainable is None else eqx.filter(params, trainable)
    trained = eqx.filter(wanted, eqx.is_inexact_array)
    if not jax.tree.leaves(trained):
        kinds = sorted({type(x).__name__ for x in jax.tree.leaves(params)})
        raise ValueError(
            f"nothing to train: params has leaves of {kinds}, of which trainable leaves no array "
            "of floats. Give the parameters as arrays, or another trainable="
        )
    spec = jax.tree.map(lambda x: x is not None, trained, is_leaf=lambda x: x is None)
    return trained, eqx.filter(params, spec, inverse=True)


def as_arrays(params: PyTree) -> PyTree:
    """NumPy arrays and Python floats among the parameters as JAX arrays."""

    def leaf(x):
        return jnp.asarray(x) if isinstance(x, (float, np.ndarray)) else x

    return jax.tree.map(leaf, params)
