"""Estimates of an objective and of its gradient."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from ...ppl.compiled import compiled
from .baselines import Baseline, Running
from .objective import Objective, objective
from .probe import Plan
from .surrogate import run_once


class Surrogate(eqx.Module):
    """See `surrogate`."""

    objective: Objective
    plan: Plan
    baseline: Baseline | None
    samples: int = eqx.field(static=True)

    def __call__(self, key: PRNGKeyArray, params: PyTree, *args: PyTree) -> Float[Array, ""]:
        """The estimate of the objective's expectation, nats; its gradient is the estimate."""

        def one(key):
            return run_once(self.objective, self.plan, self.baseline, key, (params, *args))

        if self.samples == 1:
            sample = one(key)
            if sample.score is not None:
                raise ValueError(
                    "a leave-one-out baseline compares independent runs, and there is one: pass "
                    "samples=2 or more, put the draw into ctx.many, or use baseline=vi.Running()"
                )
            return sample.surrogate
        batch = jax.vmap(lambda i: one(jax.random.fold_in(key, i)))(jnp.arange(self.samples))
        total = jnp.mean(batch.surrogate)
        if batch.score is None:
            return total
        values = jax.lax.stop_gradient(batch.value)
        # f - (mean of the others) is n / (n - 1) times f - (mean of all).
        advantage = (values - jnp.mean(values)) * (self.samples / (self.samples - 1))
        term = jnp.mean(batch.score * advantage)
        return total + term - jax.lax.stop_gradient(term)

    def after(self, value: Float[ArrayLike, ""]) -> "Surrogate":
        """The same with every `Running` baseline told of one more value of the objective."""
        return _after(self, value)


class ValueAndGrad(eqx.Module):
    """See `value_and_grad`."""

    surrogate: Surrogate

    def __call__(
        self, key: PRNGKeyArray, params: PyTree, *args: PyTree
    ) -> tuple[Float[Array, ""], PyTree]:
        """Unbiased estimates of the expectation and of its gradient in `params`.

        The gradient has the structure of `params`, None at what is not an inexact array.
        """
        return _value_and_grad(self.surrogate, key, params, args)

    def after(self, value: Float[ArrayLike, ""]) -> "ValueAndGrad":
        """The same with every `Running` baseline told of one more value of the objective."""
        return _after(self, value)


@compiled
def _value_and_grad(surrogate: Surrogate, key: PRNGKeyArray, params: PyTree, args: tuple):
    return eqx.filter_value_and_grad(lambda p: surrogate(key, p, *args))(params)


def _after(tree: Any, value: Any) -> Any:
    def is_running(x):
        return isinstance(x, Running)

    return jax.tree.map(lambda x: x.after(value) if is_running(x) else x, tree, is_leaf=is_running)


def surrogate(
    objective: Any,
    strategies: Any = None,
    *,
    samples: int = 1,
    baseline: Baseline | None = None,
    allow_biased: bool = False,
) -> Surrogate:
    """A function of (key, params, *args) whose gradient estimates that of E[objective].

    Its value is the objective's estimate; add terms of your own and differentiate the sum in
    `params` by `jax.grad` (reverse mode, once: second derivatives are not those of the objective).
    See `value_and_grad` for the arguments.
    """
    if samples < 1 or int(samples) != samples:
        raise ValueError(f"samples is the number of independent runs, at least 1; got {samples!r}")
    return Surrogate(_objective(objective), Plan(strategies, allow_biased), baseline, samples)


def value_and_grad(
    objective: Any,
    strategies: Any = None,
    *,
    samples: int = 1,
    baseline: Baseline | None = None,
    allow_biased: bool = False,
) -> ValueAndGrad:
    """Unbiased estimates of E[objective] and of its gradient in the first argument.

    `value_and_grad(...)(key, params, *args) -> (value, gradient)`, nats, under `jit`, `vmap` and
    `scan` too. It is a module: where a `Running` baseline is used, it is its own state, `estimator
    = estimator.after(value)`.

    - `strategies`: how the gradient passes through the draws: a strategy for all sites (draws that
      cannot have it are reparameterized), nested dicts from names to strategies, or pairs
      `(ppl.select(...), strategy)`. A site without one is reparameterized, or an error if its
      distribution cannot be.
    - `samples`: independent runs, of which the mean is taken.
    - `baseline`: of all scores that name none of their own.
    - `allow_biased`: permits straight-through strategies.

    A second call with other arrays compiles nothing.
    """
    return ValueAndGrad(
        surrogate(
            objective, strategies, samples=samples, baseline=baseline, allow_biased=allow_biased
        )
    )


def _objective(fn: Any) -> Objective:
    return fn if isinstance(fn, Objective) else objective(fn)
