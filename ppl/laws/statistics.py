"""Means and variances over many vmapped runs, accumulated on the host in float64."""

from collections.abc import Callable, Iterator

import jax
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from ..compiled import compiled

CHUNK = 2**11


def batches(
    one: Callable, key: PRNGKeyArray, runs: int, *args: PyTree
) -> Iterator[tuple[PyTree, int]]:
    """`one(key, *args)` over `runs` keys, vmapped, in chunks: (results, how many of them count)."""
    chunk = min(CHUNK, runs)
    for start in range(0, runs, chunk):
        keys = jax.random.split(jax.random.fold_in(key, start), chunk)
        yield _vmapped(one, keys, args), min(chunk, runs - start)


@compiled
def _vmapped(one, keys, args):
    return jax.vmap(lambda key: one(key, *args))(keys)


def moments(values: Iterator[tuple[PyTree, int]]) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean, standard error of the mean, and count of vectors [runs, F] that come in batches."""
    n, total, squares = 0, 0.0, 0.0
    for x, count in values:
        x = np.asarray(x, np.float64)[:count]
        n, total, squares = n + count, total + x.sum(0), squares + np.square(x).sum(0)
    mean = np.asarray(total / n)
    variance = np.maximum(squares / n - mean**2, 0) * n / max(n - 1, 1)
    return mean, np.sqrt(variance / n), n
