"""Reading a posterior over texts."""

from typing import NamedTuple

import numpy as np

from ...inference.particles import Particles
from .protocol import LanguageModel


class Reading(NamedTuple):
    """A text with its posterior probability and the number of particles that wrote it."""

    text: str
    probability: float
    particles: int
    finished: bool


def texts(lm: LanguageModel, particles: Particles, site: str = "token") -> list[Reading]:
    """The distinct texts of a population, most probable first; equal texts are merged.

    Probabilities are the normalized weights: a self-normalized (consistent) estimate. Texts of
    weight zero are left out; a dead population gives an empty list.
    """
    if lm.tokenizer is None:
        raise ValueError("this model has no tokenizer: read particles.choices instead")
    log_weights = np.asarray(particles.log_weights, np.float64)
    if not np.isfinite(log_weights).any():
        return []
    weights = np.exp(log_weights - log_weights.max())
    merged: dict[tuple[str, bool], list[float]] = {}
    rows, lengths = np.asarray(particles.choices[site]), np.asarray(particles.lengths)
    for row, length, weight in zip(rows, lengths, weights / weights.sum(), strict=True):
        ids = [int(i) for i in row[:length]]
        finished = bool(ids) and ids[-1] == lm.eos
        text = lm.tokenizer.decode(ids[:-1] if finished else ids)
        merged.setdefault((text, finished), []).append(float(weight))
    readings = [
        Reading(text, sum(ws), len(ws), done) for (text, done), ws in merged.items() if sum(ws) > 0
    ]
    return sorted(readings, key=lambda r: -r.probability)
