"""Methods at equal cost: accuracy against tokens, with bands that are paired over problems.

Bootstrap: Efron and Tibshirani (1993), "An Introduction to the Bootstrap", chapters 6 and 13.
Problems are drawn with replacement, the same for every method and budget, so that differences and
ratios between methods have the variance of pairs.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Bands(NamedTuple):
    """Mean accuracy of a method at each budget, its band, and the bootstrap draws [draws, budgets].

    Draw b of every method is of the same problems.
    """

    mean: Float[np.ndarray, "budgets"]
    low: Float[np.ndarray, "budgets"]
    high: Float[np.ndarray, "budgets"]
    draws: Float[np.ndarray, "draws budgets"]


def paired_bands(
    outcomes: Mapping[str, Float[np.ndarray, "problems budgets"]],
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Bands]:
    """Of outcomes in [0, 1] (right or wrong, or the chance of it) the means and percentile bands.

    All methods must have answered the same problems, in the same order.
    """
    sizes = {name: np.shape(x) for name, x in outcomes.items()}
    if len({shape[0] for shape in sizes.values()}) != 1 or any(len(s) != 2 for s in sizes.values()):
        raise ValueError(
            f"paired comparison needs [problems, budgets] on the same problems, got {sizes}"
        )
    problems = next(iter(sizes.values()))[0]
    picks = np.random.default_rng(seed).integers(0, problems, (draws, problems))
    counts = np.stack([np.bincount(p, minlength=problems) for p in picks]) / problems
    tail = 100 * (1 - level) / 2
    bands = {}
    for name, x in outcomes.items():
        x = np.asarray(x, np.float64)
        drawn = counts @ x
        low, high = np.percentile(drawn, [tail, 100 - tail], axis=0)
        bands[name] = Bands(x.mean(axis=0), low, high, drawn)
    return bands


def scaling_rate(
    accuracy: Float[np.ndarray, "*draws budgets"], tokens: Float[np.ndarray, "budgets"]
) -> Float[np.ndarray, "*draws"]:
    """Accuracy gained for each doubling of the tokens: least squares on log2(tokens)."""
    x = np.log2(np.asarray(tokens, np.float64))
    if len(x) < 2 or np.ptp(x) == 0:
        raise ValueError("a rate needs accuracies at two budgets at least")
    x = x - x.mean()
    return np.asarray(np.asarray(accuracy, np.float64) @ x / np.sum(x * x))


def rate_ratio(
    ours: Bands,
    our_tokens: Float[np.ndarray, "budgets"],
    theirs: Bands,
    their_tokens: Float[np.ndarray, "budgets"],
    level: float = 0.95,
) -> tuple[float, float, float]:
    """The ratio of two methods' scaling rates and its paired interval (percentiles).

    Where the other's rate may be zero the interval is wide, and says so.
    """
    tail = 100 * (1 - level) / 2
    drawn = scaling_rate(ours.draws, our_tokens) / scaling_rate(theirs.draws, their_tokens)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    one = scaling_rate(ours.mean, our_tokens) / scaling_rate(theirs.mean, their_tokens)
    return float(one), float(low), float(high)


def accuracy_at(
    accuracy: Float[np.ndarray, "*draws budgets"], tokens: Float[np.ndarray, "budgets"], cost: float
) -> Float[np.ndarray, "*draws"]:
    """Accuracy at a cost between two budgets, linear in log(tokens); NaN outside what was run."""
    x = np.log(np.asarray(tokens, np.float64))
    accuracy = np.asarray(accuracy, np.float64)
    if not x[0] <= np.log(cost) <= x[-1]:
        return np.full(accuracy.shape[:-1], np.nan)
    right = int(np.clip(np.searchsorted(x, np.log(cost)), 1, len(x) - 1))
    share = (np.log(cost) - x[right - 1]) / (x[right] - x[right - 1])
    return np.asarray((1 - share) * accuracy[..., right - 1] + share * accuracy[..., right])
