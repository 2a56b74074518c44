"""What a run keeps of its particles over time."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
from jaxtyping import PyTree

from ..ppl.code import Code
from ..ppl.hot import drop_hot


class Record(eqx.Module):
    """Argument of a run: `Record.choices()`, `Record.states(fn)` or `Record.last()`.

    Hot state is never kept, so that memory does not grow with it.
    """

    with_choices: bool = eqx.field(static=True)
    fn: Code | None

    @staticmethod
    def choices() -> "Record":
        """Every particle's choices at every step."""
        return Record(True, None)

    @staticmethod
    def states(fn: Callable = drop_hot, choices: bool = True) -> "Record":
        """`fn(state)` after every step, as `particles.record` [N, length, ...]."""
        return Record(choices, Code(fn))

    @staticmethod
    def last() -> "Record":
        """Nothing of the past: the final states, weights and evidence only."""
        return Record(False, None)

    def keep(self, choices: Any, state: PyTree) -> dict[str, Any]:
        """What to store of one particle's move."""
        kept: dict[str, Any] = {"choices": choices} if self.with_choices else {}
        return kept if self.fn is None else {**kept, "record": drop_hot(self.fn(state))}
