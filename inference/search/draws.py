"""Independent candidates, and what their scores and answers are on the host."""

import logging
from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from ...ppl.partial import Choices
from ...ppl.status import DEAD, NAN, OK, Status
from ...ppl.target import as_target
from ..importance import Importance
from ..ledger import Ledger, ledger
from .choice import Choice, chosen
from .tally import Vote

_log = logging.getLogger(__name__)


class Draws(NamedTuple):
    """Candidates as numpy arrays [n, ...], their log-weights and lengths, and their cost."""

    choices: Choices
    log_weights: np.ndarray
    lengths: np.ndarray
    status: Status
    ledger: Ledger
    start: float

    @property
    def alive(self) -> np.ndarray:
        """Which candidates may be chosen: the target does not rule them out."""
        return self.log_weights > -np.inf

    def one(self, i: int) -> Choices:
        """The choices of one candidate."""
        return jax.tree.map(lambda x: x[i], self.choices)

    def each(self, fn: Callable[[Choices], Any], kind: type) -> tuple[list, int]:
        """`fn` of every candidate that may be chosen, and how often it was called.

        Equal candidates are asked about once. Where it raises, the log names it and the result is
        missing (None, or NaN for a number): that candidate is lost and no other.
        """
        missing = np.nan if kind is float else None
        known: dict[bytes, Any] = {}
        out = [missing] * len(self.lengths)
        for i in map(int, np.flatnonzero(self.alive)):
            leaves = jax.tree.leaves(self.one(i))
            name = b"|".join(np.asarray(x).tobytes() for x in leaves)
            if name not in known:
                try:
                    known[name] = fn(self.one(i))
                    known[name] = float(known[name]) if kind is float else known[name]
                except Exception:
                    _log.exception(
                        "%s failed on candidate %d",
                        getattr(fn, "__qualname__", repr(fn)),
                        i,
                    )
                    known[name] = missing
            out[i] = known[name]
        return out, len(known)

    def choice(
        self, index: int, scores: np.ndarray, calls: int, votes: tuple[Vote, ...] = ()
    ) -> Choice:
        """The choice of candidate `index`; `calls` are what scoring or reading took."""
        status = self.status
        if index < 0:
            lost = NAN if self.alive.any() else DEAD
            status = Status.ok(("the score or answer",)).then(True, lost, self.lengths.max())
        spent = self.ledger
        return chosen(
            index,
            self.choices,
            scores=scores,
            lengths=self.lengths,
            status=status,
            ledger=Ledger(
                spent.tokens, spent.moves, spent.passes, calls, 0, perf_counter() - self.start
            ),
            answer=votes[0].answer if votes else None,
            votes=votes,
        )


def draw(key: PRNGKeyArray, target: Any, n: int) -> Draws:
    """N independent draws of the model, weighed by what the target has besides it."""
    start = perf_counter()
    particles = Importance(n).run(key, as_target(target))
    choices, log_weights, lengths = jax.tree.map(
        np.asarray, (particles.choices, particles.log_weights, particles.lengths)
    )
    log_weights = np.where(np.isnan(log_weights), -np.inf, log_weights).astype(np.float64)
    # A candidate that fails is lost; the others can still be chosen.
    status = particles.status if bool(particles.status) else Status.ok(particles.status.sites)
    assert int(status.code) == OK
    return Draws(choices, log_weights, lengths, status, ledger(particles), start)
