"""What a search returns, and what a search is."""

import abc
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from ...ppl.partial import Choices
from ...ppl.status import Status
from ..ledger import Ledger
from .tally import Vote


@dataclass(frozen=True)
class Choice:
    """One candidate chosen out of several: a decision, not a posterior. On the host.

    - `choices`: those of the chosen candidate, `index` its number, `score` its score; None, -1 and
      -inf where nothing could be chosen, and `status` says why.
    - `candidates` (leading axis n), `scores` [n], `lengths` [n]: all that there were. A candidate
      of weight zero has the score -inf and is never chosen.
    - `answer`, `votes`: of a vote, the chosen answer, and the classes by their totals.
    - `ledger`: what it cost.
    """

    choices: Choices | None
    index: int
    score: float
    candidates: Choices
    scores: np.ndarray
    lengths: np.ndarray
    status: Status
    ledger: Ledger
    answer: Hashable | None = None
    votes: tuple[Vote, ...] = ()

    def __getattr__(self, name: str) -> Any:
        if name in ("log_evidence", "log_weights", "ess", "expectation"):
            raise AttributeError(
                f"a selection has no {name}: it maximizes, it does not sample. Instead of it run "
                "inference.SMC or inference.Importance on the same target"
            )
        raise AttributeError(f"Choice has no attribute {name!r}")

    def __repr__(self) -> str:
        said = f", answer={self.answer!r}" if self.votes else ""
        return (
            f"Choice(index={self.index} of {len(self.scores)}, score={self.score:.4g}{said}, "
            f"status={self.status!r})"
        )


class Search(eqx.Module):
    """Selects one candidate for a target by maximizing something.

    Not an `Algorithm`: what it returns is not properly weighted and has no evidence. The same key
    gives the same choice.
    """

    @abc.abstractmethod
    def run(self, key: PRNGKeyArray, target: Any, *, throw: bool = False) -> Choice:
        """The choice; `throw=True` raises `InferenceError` if there is none."""


def chosen(index: int, candidates: Choices, **fields: Any) -> Choice:
    """A `Choice` of candidate `index`, -1 for none."""
    choices = None if index < 0 else jax.tree.map(lambda x: x[index], candidates)
    score = -np.inf if index < 0 else float(fields["scores"][index])
    return Choice(choices, index, score, candidates, **fields)


def thrown(choice: Choice, throw: bool) -> Choice:
    """The choice, after raising if that was asked for and there is none."""
    if throw:
        choice.status.throw()
    return choice


def best(scores: np.ndarray) -> int:
    """The first of the largest scores; -1 if all are -inf."""
    index = int(np.argmax(scores))
    return index if scores[index] > -np.inf else -1


Answer = Callable[[Choices], Hashable | None]
"""Reads one candidate's answer on the host; None if it gives none."""

Score = Callable[[Choices], Any]
"""Scores one candidate on the host (numpy leaves); a number, larger is better."""
