"""Are two sets of draws from one law? The kernel two-sample test, and a classifier's accuracy.

Gretton, Borgwardt, Rasch, Schoelkopf and Smola (2012), "A kernel two-sample test", eq. 3 (unbiased
estimate) and section 5 (the null by permutation). Lopez-Paz and Oquab (2017), "Revisiting
classifier two-sample tests", with the classifier and folds of Lueckmann, Boelts, Greenberg,
Goncalves and Macke (2021), "Benchmarking simulation-based inference", appendix: numbers of other
classifiers or numbers of draws are not comparable.
"""

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

_MOST = 10_000
"""Draws in a kernel matrix."""


@dataclasses.dataclass(frozen=True)
class MMD:
    """The unbiased estimate of the squared maximum mean discrepancy, and what it says.

    `squared` may be negative; it depends on `bandwidth`, so compare only at the same one. `p_value`
    is exact under the null (that all draws are exchangeable), at least 1 / (permutations + 1).
    """

    squared: float
    p_value: float
    bandwidth: float


@dataclasses.dataclass(frozen=True)
class C2ST:
    """Cross-validated accuracy of a classifier between two sets; 0.5 if it cannot tell them apart.

    `folds` [5] are the accuracies averaged. A number is worth something with `draws` beside it:
    more draws tell more.
    """

    accuracy: float
    folds: Float[np.ndarray, "folds"]
    draws: int


def mmd(
    key: PRNGKeyArray,
    x: Float[ArrayLike, "n _"],
    y: Float[ArrayLike, "m _"],
    bandwidth: float | None = None,
    permutations: int = 999,
) -> MMD:
    """MMD^2 of the Gaussian kernel exp(-d^2 / (2 s^2)) between independent draws x and y.

    Args:
        key: of the permutations.
        x: draws, one a row.
        y: others; their number may differ.
        bandwidth: s; by default the median distance among all of them (`sbi`'s rule; `sbibm` takes
            the median among x alone: give it, and know that p-values are then approximate).
        permutations: for the p-value; the kernel matrix, (n + m)^2 numbers, is made once.

    Raises:
        ValueError: sets of other dimensions, of fewer than two draws, or of more than 10,000
            together.
    """
    first, second = _sets(x, y)
    if len(first) + len(second) > _MOST:
        raise ValueError(
            f"the kernel matrix of {len(first)} + {len(second)} draws is too large: give at most "
            f"{_MOST // 2} of each, or use c2st"
        )
    n, pooled = len(first), jnp.asarray(np.concatenate([first, second]), dtype=float)
    s = jnp.asarray(0.0 if bandwidth is None else bandwidth, dtype=float)
    values, s = _mmd(key, pooled, s, n, permutations)
    values = np.asarray(values, np.float64)
    p = (1 + np.sum(values[1:] >= values[0] - 1e-12)) / (permutations + 1)
    return MMD(float(values[0]), float(p), float(s))


@functools.partial(jax.jit, static_argnums=(3, 4))
def _mmd(
    key: PRNGKeyArray, pooled: Array, s: Array, n: int, permutations: int
) -> tuple[Array, Array]:
    total = pooled.shape[0]
    m = total - n
    pooled = pooled - jnp.mean(pooled, axis=0)[None]
    norm = jnp.sum(pooled**2, axis=1)
    inner = jnp.matmul(pooled, pooled.T, precision="highest")
    square = jnp.maximum(norm[:, None] + norm[None] - 2 * inner, 0)
    upper = jnp.triu_indices(total, 1)
    s = jnp.where(s > 0, s, jnp.sqrt(jnp.median(square[upper])))
    kernel = jnp.exp(-square / (2 * s**2)) * (1 - jnp.eye(total))
    kernel = jnp.where(s > 0, kernel, 0.0)
    first = (jnp.arange(total) < n).astype(pooled.dtype)
    shuffled = jax.vmap(lambda k: jax.random.permutation(k, first))(
        jax.random.split(key, permutations)
    )
    members = jnp.concatenate([first[None], shuffled])
    rows = members @ kernel
    inside = jnp.sum(rows * members, axis=1)
    across = jnp.sum(rows, axis=1) - inside
    outside = jnp.sum(kernel) - inside - 2 * across
    return inside / (n * (n - 1)) + outside / (m * (m - 1)) - 2 * across / (n * m), s


def c2st(reference: Float[ArrayLike, "n _"], draws: Float[ArrayLike, "m _"], seed: int = 1) -> C2ST:
    """Classifier two-sample test as `sbibm` defines it.

    Both sets are standardized by the reference's mean and deviation; a perceptron with two hidden
    layers of 10 d units (ReLU, Adam, at most 10,000 epochs) is trained on four fifths and judged on
    the last, five times. With 10,000 draws each it takes about a minute.

    Args:
        reference: exact draws, one a row.
        draws: as many others.
        seed: of weights and folds.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: other dimensions or another number of draws (chance would not be 0.5).
    """
    x, y = _sets(reference, draws)
    if len(x) != len(y):
        raise ValueError(
            f"{len(x)} reference draws against {len(y)}: chance is 0.5 only for equal numbers, so "
            "leave some out"
        )
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.model_selection import KFold, cross_val_score
        from sklearn.neural_network import MLPClassifier
    except ImportError as error:
        raise ImportError("c2st needs scikit-learn: pip install scikit-learn") from error
    mean, scale = x.mean(0), x.std(0, ddof=1)
    scale = np.where(scale > 0, scale, 1.0)
    both = np.concatenate([(x - mean) / scale, (y - mean) / scale])
    label = np.repeat([0, 1], [len(x), len(y)])
    width = 10 * x.shape[1]
    net = MLPClassifier((width, width), max_iter=10_000, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        scores = cross_val_score(net, both, label, cv=KFold(5, shuffle=True, random_state=seed))
    return C2ST(float(scores.mean()), np.asarray(scores, float), len(x))


def _sets(x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(
            f"needs two sets of draws [n, d] with the same d, got {first.shape} and {second.shape}"
        )
    if min(len(first), len(second)) < 2:
        raise ValueError("needs at least two draws in each set")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("a draw is not finite: look at the status of the run first")
    return first, second
