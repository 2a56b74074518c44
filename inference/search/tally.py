"""Counting votes: answers in classes, with defined ties."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np


class Vote(NamedTuple):
    """A class of equal answers: its first answer, its total, and the candidates in it."""

    answer: Hashable
    total: float
    members: tuple[int, ...]


def tally(
    answers: Sequence[Hashable | None],
    weights: Any = None,
    same: Callable[[Any, Any], bool] | None = None,
) -> tuple[Vote, ...]:
    """The classes of answers, the largest total first; of equal totals the one first answered.

    `weights` are what each answer counts (1 by default; none negative). An answer of None, or of
    weight zero or NaN, is no vote. `same(a, b)` says which answers are equal; each is compared with
    the first of every class in turn, so it should be an equivalence. Runs on the host.
    """
    weights = np.ones(len(answers)) if weights is None else np.asarray(weights, np.float64)
    if weights.shape != (len(answers),):
        raise ValueError(f"{len(answers)} answers need as many weights, got {weights.shape}")
    if np.any(weights < 0):
        raise ValueError(
            "a vote counts by a weight that is not negative: give probabilities or rewards, not "
            "their logarithms"
        )
    classes: dict[Hashable, list[int]] = {}
    for i, (answer, weight) in enumerate(zip(answers, weights, strict=True)):
        if answer is None or not weight > 0:
            continue
        key = answer
        if same is not None and key not in classes:
            key = next((first for first in classes if same(first, answer)), answer)
        classes.setdefault(key, []).append(i)
    votes = [
        Vote(answer, float(weights[members].sum()), tuple(members))
        for answer, members in classes.items()
    ]
    return tuple(sorted(votes, key=lambda v: (-v.total, v.members[0])))
