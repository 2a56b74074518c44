"""Votes over the answers of independent candidates.

Majority: Wang et al. (2023), "Self-consistency improves chain of thought reasoning in language
models", section 2. Weighted by a verifier: Li et al. (2023), "Making language models better
reasoners with step-aware verifier", section 3.2.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from ...ppl.compiled import compiled
from ...ppl.target import Target, as_target
from .choice import Answer, Choice, Score, Search, thrown
from .draws import Draws, draw
from .tally import tally


class _Voting(Search):
    """n independent draws of the model, whose answers vote.

    `answer(choices)` reads a candidate's answer on the host (hashable; None: it gives none), `same`
    says which answers are equal (by default those that compare equal). The class of the largest
    total wins, of equals the one answered first; of its members the best score is chosen.
    """

    n: eqx.AbstractVar[int]
    answer: eqx.AbstractVar[Answer]
    same: eqx.AbstractVar[Callable | None]

    @abc.abstractmethod
    def weigh(self, draws: Draws, target: Target) -> tuple[np.ndarray, np.ndarray, int]:
        """What each candidate counts (not negative), its score, and the calls that took."""

    def run(self, key: PRNGKeyArray, target: Any, *, throw: bool = False) -> Choice:
        """See `Search.run`."""
        if self.n < 1:
            raise ValueError(f"a vote needs at least one candidate, got n={self.n}")
        target = as_target(target)
        draws = draw(key, target, self.n)
        answers, _ = draws.each(self.answer, object)
        weights, scores, calls = self.weigh(draws, target)
        votes = tally(answers, weights, self.same)
        index = -1
        if votes:
            members = np.asarray(votes[0].members)
            index = int(members[np.argmax(scores[members])])
        return thrown(draws.choice(index, scores, calls, votes), throw)


class MajorityVote(_Voting):
    """The most frequent answer (self-consistency); candidates of weight zero do not vote."""

    n: int = eqx.field(static=True)
    answer: Answer = eqx.field(static=True)
    same: Callable | None = eqx.field(static=True, default=None)

    def weigh(self, draws, target):
        """One each."""
        return draws.alive.astype(np.float64), draws.log_weights, 0


class WeightedBestOfN(_Voting):
    """The answer with the largest sum of scores.

    `score(choices)` is a reward that is not negative, called on the host; by default the target's
    likelihood, which makes the vote the importance-sampling estimate of the answer's posterior.
    """

    n: int = eqx.field(static=True)
    answer: Answer = eqx.field(static=True)
    score: Score | None = eqx.field(static=True, default=None)
    same: Callable | None = eqx.field(static=True, default=None)

    def weigh(self, draws, target):
        """The score, or the likelihood relative to the largest."""
        if self.score is None:
            return _relative(draws.log_weights), draws.log_weights, self.n
        found, calls = draws.each(self.score, float)
        scores = np.asarray(found, np.float64)
        lost = np.isnan(scores)
        return np.where(lost, 0.0, scores), np.where(lost, -np.inf, scores), calls


class ProbabilityVote(_Voting):
    """The answer with the largest target density, summed over the distinct candidates.

    Each distinct text counts by its own density, prior times likelihood, and once, however often it
    was drawn: less noisy than counting where few texts hold the mass, and a lower bound on an
    answer's (unnormalized) posterior probability. Costs one more pass over each candidate.
    """

    n: int = eqx.field(static=True)
    answer: Answer = eqx.field(static=True)
    same: Callable | None = eqx.field(static=True, default=None)

    def weigh(self, draws, target):
        """The density of each candidate that was not seen before, relative to the largest."""
        log_density = np.asarray(_log_densities(target, draws.choices), np.float64)
        log_density = np.where(draws.alive & ~np.isnan(log_density), log_density, -np.inf)
        seen: set[bytes] = set()
        for i in range(self.n):
            name = b"|".join(np.asarray(x).tobytes() for x in jax.tree.leaves(draws.one(i)))
            if name in seen:
                log_density[i] = -np.inf
            seen.add(name)
        return _relative(log_density), log_density, self.n


def _relative(log_weights: np.ndarray) -> np.ndarray:
    top = log_weights.max()
    return np.exp(log_weights - top) if top > -np.inf else np.zeros_like(log_weights)


@compiled
def _log_densities(target: Target, choices: Any):
    return jax.vmap(target.log_density)(choices)
