"""Beam search over the steps of a state-space model, and diverse verifier tree search.

Lowerre (1976), "The Harpy speech recognition system"; over sampled reasoning steps ranked by a
process reward: Snell et al. (2024), "Scaling LLM test-time compute optimally can be more effective
than scaling model parameters", section 5.2 (arXiv:2408.03314). Independent subtrees: Beeching,
Tunstall and Rush (2024), "Scaling test-time compute with open models".
"""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from ...ppl.code import Code
from ...ppl.compiled import compiled
from ...ppl.status import DEAD, Status
from ...ppl.target import Target, as_target
from ..batch import over_targets
from ..ledger import Ledger
from .choice import Choice, Search, best, chosen, thrown
from .expansion import Expansion, Sampled
from .path import Beams, Path
from .tree import grow


def _log_density(path: Path):
    return path.log_prior + path.log_likelihood


class _Tree(Search):
    """The parts that beam searches share."""

    width: int = eqx.field(static=True)
    expand: Expansion
    score: Code
    tokens: Code | None
    groups: eqx.AbstractVar[int]

    def __init__(
        self,
        width: int,
        expand: Expansion | int,
        score: Callable = _log_density,
        tokens: Callable | None = None,
    ):
        if width < 1:
            raise ValueError(f"{type(self).__name__} keeps at least one beam, got width={width}")
        self.width, self.score = width, Code(score)
        self.expand = Sampled(expand) if isinstance(expand, int) else expand
        self.tokens = None if tokens is None else Code(tokens)

    def beams(self, key: PRNGKeyArray, target: Any) -> Beams:
        """The final beams as arrays; may be used under `jit` and `vmap`."""
        return _beams(self, key, as_target(target))

    def run(self, key: PRNGKeyArray, target: Any, *, throw: bool = False) -> Choice:
        """See `Search.run`."""
        start = perf_counter()
        found = jax.block_until_ready(self.beams(key, target))
        scores, lengths, candidates = jax.tree.map(
            np.asarray, (found.scores, found.lengths, found.choices)
        )
        index, status = best(scores), found.status
        # A lost candidate is no failure while there are others.
        if index >= 0:
            status = Status.ok(status.sites)
        elif bool(status):
            status = status.then(True, DEAD, as_target(target).state_space().length)
        choice = chosen(
            index,
            candidates,
            scores=scores,
            lengths=lengths,
            status=status,
            ledger=Ledger(
                found.tokens, found.moves, found.passes, found.rewards, 0, perf_counter() - start
            ),
        )
        return thrown(choice, throw)


class BeamSearch(_Tree):
    """Keeps at each step the `width` best of all children of the beams so far; the best at the end.

    - `expand`: `Sampled(m)` draws of the step for each beam (an int is short for it), or
      `Enumerated(site)`, every value of a finite site: the classic beam over tokens.
    - `score(path)`: what beams are ranked by, see `Path`; by default the log density of the target
      so far, so that a beam as wide as the number of sequences finds the mode of a model whose one
      site is enumerated. `lambda path: path.log_likelihood` ranks by rewards alone.
    - `tokens(choices)`: how many symbols a move wrote, for the ledger; by default 1.

    A finished beam keeps its place and its score while it is among the best, and is its only child.
    Of equal scores the child of the better parent comes first. Paths of weight zero and those
    whose score is NaN are dropped.
    """

    @property
    def groups(self) -> int:
        """All beams compete."""
        return 1


class DVTS(_Tree):
    """`width` trees that grow apart: each keeps its best child at every step.

    The same cost as a beam search of that width, and more variety. Arguments as there.
    """

    @property
    def groups(self) -> int:
        """Each tree by itself."""
        return self.width


@compiled
def _beams(search: _Tree, key: PRNGKeyArray, target: Target) -> Beams:
    return grow(search, key, target)


@compiled
def _beams_many(search: _Tree, key: PRNGKeyArray, targets: Target) -> Beams:
    return over_targets(lambda k, target: grow(search, k, target), key, targets)


def beams_many(search: BeamSearch | DVTS, key: PRNGKeyArray, targets: Target) -> Beams:
    """The beams of a search on each of a batch of targets, in one compiled call; see `run_many`.

    Every field has a leading batch axis.
    """
    return _beams_many(search, key, as_target(targets))
