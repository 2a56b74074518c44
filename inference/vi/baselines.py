"""Baselines: what is subtracted from the objective before it multiplies a score.

Any number that does not depend on the site's own draw keeps the gradient unbiased, for scores have
mean zero; one close to the objective's mean lowers the variance.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree

from ...ppl.code import Code


class Baseline(eqx.Module):
    """What is subtracted from the objective, nats."""


class Running(Baseline):
    """The exponentially weighted mean of the objective's earlier values (0 before the first).

    It is state, which the caller carries: `estimator = estimator.after(value)`; `vi.fit` does.
    """

    decay: Float[Array, ""] = eqx.field(
        default=0.9, converter=lambda x: jnp.asarray(x, dtype=float)
    )
    total: Float[Array, ""] = eqx.field(default_factory=lambda: jnp.zeros(()))
    weight: Float[Array, ""] = eqx.field(default_factory=lambda: jnp.zeros(()))

    @property
    def mean(self) -> Float[Array, ""]:
        """The baseline now."""
        none = self.weight == 0
        return jnp.where(none, 0.0, self.total / jnp.where(none, 1.0, self.weight))

    def after(self, value: Float[ArrayLike, ""]) -> "Running":
        """The baseline after one more value; a value that is not finite is left out."""
        value = jnp.asarray(value, self.total.dtype)
        fine = jnp.isfinite(value)
        total = self.decay * self.total + (1 - self.decay) * jnp.where(fine, value, 0.0)
        weight = self.decay * self.weight + (1 - self.decay)
        return Running(
            self.decay, jnp.where(fine, total, self.total), jnp.where(fine, weight, self.weight)
        )


class Learned(Baseline):
    """A function of the parameters and the objective's other arguments (Mnih and Gregor 2014).

    `fn(params, *args) -> scalar`. What it learns is part of `params`, and its gradient there is
    that of -(objective - baseline)^2 / 2: it is fitted by the same ascent. It must not see draws.
    """

    fn: Code

    def __init__(self, fn: Callable[..., Any]):
        self.fn = Code(fn)

    def __call__(self, params: PyTree, *args: PyTree) -> Float[Array, ""]:
        """The baseline for these arguments."""
        value = jnp.asarray(self.fn(params, *args))
        if value.shape:
            raise ValueError(f"vi.Learned needs one number, got shape {value.shape}: take its mean")
        return value


class LeaveOneOut(Baseline):
    """What the objective would have been without this run, from the other independent runs.

    For a site inside `ctx.many(name, n, ...)`: the objective with this run's result replaced by the
    mean of the others' (VIMCO, Mnih and Rezende 2016, where the objective is a log mean exp; RLOO
    where it is a mean). Elsewhere: the mean over the other `samples` (RLOO, Kool, van Hoof and
    Welling 2019). Needs two runs or samples.
    """


def others(values: PyTree, i: Any) -> PyTree:
    """Results [n, ...] of `many` with the i-th replaced by the mean of the others."""

    def leaf(x):
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return x.at[i].set(x[(i + 1) % x.shape[0]])
        own = (jnp.arange(x.shape[0]) == i).reshape((-1,) + (1,) * (x.ndim - 1))
        rest = jnp.sum(jnp.where(own, jnp.zeros_like(x), x), axis=0) / (x.shape[0] - 1)
        return x.at[i].set(rest)

    return jax.tree.map(leaf, values)
