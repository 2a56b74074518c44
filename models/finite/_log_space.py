"""Log-space sums that stay exact and differentiable at log 0, and checks of a user's tables."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray, Shaped

ROW_TOLERANCE = 1e-4

TableLike = ArrayLike | Sequence


def log_sum_exp(values: Float[Array, "..."], axis: int | tuple[int, ...]) -> Float[Array, "..."]:
    """Log of the sum of exponentials over `axis`.

    -inf (with gradient zero, not NaN) where every entry is -inf; NaN entries give NaN.
    """
    top = jax.lax.stop_gradient(jnp.max(values, axis=axis, keepdims=True))
    empty = top == -jnp.inf
    shifted = jnp.where(empty, 0.0, values - jnp.where(empty, 0.0, top))
    total = jnp.log(jnp.sum(jnp.exp(shifted), axis=axis)) + jnp.squeeze(top, axis)
    return jnp.where(jnp.squeeze(empty, axis), -jnp.inf, total)


def normalize(log_values: Float[Array, "..."], axis: int | tuple[int, ...]) -> Float[Array, "..."]:
    """Probabilities proportional to exp(log_values) over `axis`; NaN where nothing is possible."""
    total = jnp.expand_dims(log_sum_exp(log_values, axis), axis)
    return jnp.where(total == -jnp.inf, jnp.nan, jnp.exp(log_values - _finite(total)))


def draw(key: PRNGKeyArray, log_values: Float[Array, "K"]) -> Int[Array, ""]:
    """An index with probability proportional to exp(log_values); -1 where nothing is possible."""
    index = jax.random.categorical(key, log_values)
    return jnp.where(jnp.max(log_values) == -jnp.inf, -1, index)


def lookup(table: Float[Array, "n ..."], index: Int[Array, "..."] | int) -> Float[Array, "..."]:
    """Rows of `table`; an index out of range (on either side) gives NaN instead of a neighbour."""
    size = table.shape[0]
    return table.at[jnp.where(jnp.asarray(index) < 0, size, index)].get(
        mode="fill", fill_value=jnp.nan
    )


def is_concrete(array: Shaped[Array, "..."]) -> bool:
    """Whether the values can be looked at now (not under a JAX transformation)."""
    return not isinstance(array, Tracer)


def check_shape(name: str, array: Shaped[Array, "..."], shape: tuple[int, ...], why: str) -> None:
    """Raise ValueError unless `array` has `shape`."""
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, but {why} needs {shape}.")


def check_rows(
    name: str, log_table: Float[Array, "..."], ignore: Bool[np.ndarray, "..."] | None = None
) -> None:
    """Raise ValueError unless the last axis of a concrete log table holds normalized laws."""
    if not is_concrete(log_table):
        return
    with np.errstate(over="ignore"):
        sums = np.exp(np.asarray(log_table, dtype=np.float64)).sum(-1)
    bad = ~(np.abs(sums - 1.0) < ROW_TOLERANCE)
    if ignore is not None:
        bad &= ~ignore
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        row = f" (row {', '.join(map(str, where))})" if where else ""
        raise ValueError(
            f"{name} must hold log probabilities over its last axis; exp of it sums to "
            f"{float(sums[where]):.6g}{row}. Instead of raw scores or probabilities, give "
            f"jax.nn.log_softmax(scores) or jnp.log(probabilities)."
        )


def check_indices(name: str, indices: Int[Array, "..."], size: int) -> None:
    """Raise ValueError if concrete `indices` leave 0..size-1."""
    if is_concrete(indices):
        values = np.asarray(indices)
        if values.size and (values.min() < 0 or values.max() >= size):
            raise ValueError(
                f"{name} must be in 0..{size - 1}, but its range is {values.min()}..{values.max()}."
            )


def _finite(total: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.where(total == -jnp.inf, 0.0, total)
