"""Reading a posterior over texts in steps."""

from typing import NamedTuple

import numpy as np

from ...inference.particles import Particles
from .protocol import LanguageModel


class StepReading(NamedTuple):
    """A text in steps, its posterior probability and the number of particles that wrote it."""

    steps: tuple[str, ...]
    probability: float
    particles: int
    finished: bool

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.steps)


def step_texts(lm: LanguageModel, particles: Particles) -> list[StepReading]:
    """The distinct texts of a population that `stepwise` wrote, most probable first.

    As `models.texts`: equal texts (in equal steps) are merged, those of weight zero left out, and
    a dead population gives an empty list.
    """
    if lm.tokenizer is None:
        raise ValueError("this model has no tokenizer: read particles.state.tokens instead")
    log_weights = np.asarray(particles.log_weights, np.float64)
    alive = np.isfinite(log_weights)
    if not alive.any():
        return []
    weights = np.where(alive, np.exp(log_weights - log_weights[alive].max()), 0.0)
    merged: dict[tuple[tuple[str, ...], bool], list[float]] = {}
    state = particles.state
    columns = (state.tokens, state.ends, state.ended, particles.lengths)
    for row, ends, ended, n, weight in zip(
        *map(np.asarray, columns), weights / weights.sum(), strict=True
    ):
        cuts = [0, *ends[:n].tolist()]
        pieces = [row[a:b] for a, b in zip(cuts, cuts[1:], strict=False) if a < b]
        key = tuple(lm.tokenizer.decode(piece) for piece in pieces), bool(ended)
        merged.setdefault(key, []).append(float(weight))
    readings = [
        StepReading(steps, sum(ws), len(ws), done)
        for (steps, done), ws in merged.items()
        if sum(ws) > 0
    ]
    return sorted(readings, key=lambda r: -r.probability)
