"""Draws without replacement from a large vocabulary, on the host, in O(sqrt V) each."""

import numpy as np


class Urn:
    """Tokens with probabilities `blocks` [B, S], token b S + s in block b; tokens can be removed.

    A draw picks a block, then a token of it, by two uniforms. What is left is summed anew at each
    removal, never found by subtraction, so that a tail of 1e-12 is as exact as the whole.
    """

    def __init__(self, blocks: np.ndarray, rng: np.random.Generator):
        self._blocks, self._rng = blocks, rng
        self._changed: dict[int, np.ndarray] = {}
        self._sums = blocks.sum(1, dtype=np.float64)
        self.whole = self.left = float(self._sums.sum())

    def probability(self, token: int) -> float:
        """What the token weighs, of `whole`."""
        block, place = divmod(token, self._blocks.shape[1])
        return float(self._row(block)[place])

    def draw(self) -> int:
        """A token by probability among those left; `left` has to be positive."""
        block = self._pick(self._sums)
        return block * self._blocks.shape[1] + self._pick(self._row(block))

    def remove(self, token: int) -> None:
        """Take a token out."""
        block, place = divmod(token, self._blocks.shape[1])
        row = self._changed.setdefault(block, self._blocks[block].copy())
        row[place] = 0.0
        self._sums[block] = row.sum(dtype=np.float64)
        self.left = float(self._sums.sum())

    def repeats(self) -> int:
        """How many draws with replacement hit what was removed before one hits what is left."""
        hit = min(self.left / self.whole, 1.0)
        return int(self._rng.geometric(hit)) - 1 if hit > 1e-15 else 1 << 62

    def _row(self, block: int) -> np.ndarray:
        changed = self._changed.get(block)
        return self._blocks[block] if changed is None else changed

    def _pick(self, weights: np.ndarray) -> int:
        ends = np.cumsum(weights, dtype=np.float64)
        index = int(np.searchsorted(ends, self._rng.random() * ends[-1], side="right"))
        index = min(index, len(weights) - 1)
        while weights[index] == 0.0:  # rounding at the very end
            index -= 1
        return index
