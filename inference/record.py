"""What a run keeps of its particles over time."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Array, Int, PyTree

from ..ppl.code import Code
from ..ppl.hot import drop_hot
from .population import buffers, set_row


class Record(eqx.Module):
    """Argument of a run: `Record.choices()`, `Record.states(fn, every=k)` or `Record.last()`.

    Hot state is never kept, so that memory does not grow with it. The genealogy
    (`particles.ancestors`) and the histories of weights are kept always.
    """

    with_choices: bool = eqx.field(static=True)
    fn: Code | None
    every: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        if self.every < 1:
            raise ValueError(f"states are kept every so many steps, at least 1, got {self.every}")

    @staticmethod
    def choices() -> "Record":
        """Every particle's choices at every step."""
        return Record(True, None)

    @staticmethod
    def states(fn: Callable = drop_hot, choices: bool = True, every: int = 1) -> "Record":
        """`fn(state)` after each `every` steps and the last, `particles.record` [N, rows, ...]."""
        return Record(choices, Code(fn), every)

    @staticmethod
    def last() -> "Record":
        """Nothing of the past: the final states, weights and evidence only."""
        return Record(False, None)

    def rows(self, length: int) -> Int[np.ndarray, "rows"]:
        """The steps after which states are kept."""
        return np.minimum(np.arange(self.every, length + self.every, self.every), length) - 1

    def keep(self, choices: Any, state: PyTree) -> dict[str, Any]:
        """What to store of one particle's move."""
        kept: dict[str, Any] = {"choices": choices} if self.with_choices else {}
        return kept if self.fn is None else {**kept, "record": drop_hot(self.fn(state))}

    def buffers(self, row: dict[str, Any], length: int) -> dict[str, Any]:
        """Room for what the steps of a run store."""
        rows = len(self.rows(length))
        return {k: buffers(x, rows if k == "record" else length) for k, x in row.items()}

    def stored(
        self, store: dict[str, Any], t: Int[Array, ""], row: dict[str, Any]
    ) -> dict[str, Any]:
        """The store with a step's row; of the states between two that are kept the last stays."""
        at = {"record": t // self.every}
        return {name: set_row(x, at.get(name, t), row[name]) for name, x in store.items()}
