"""What a check of a law returns, and how it is decided."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

THRESHOLD = 4.0
"""A law holds when every |z| is below this."""

ROUNDINGS = 64
"""Identities that hold without randomness may miss by this many roundings a unit of z."""


class LawError(AssertionError):
    """A law does not hold."""


@dataclasses.dataclass(frozen=True)
class LawResult:
    """The verdict on a law.

    - `z`: by the name of what was compared, (estimate - exact) / standard error. For an identity
      without randomness it is the error in units of `ROUNDINGS` roundings; 0 or inf for something
      impossible.
    - `runs`: independent runs behind the last z-scores.
    - `first`: the z-scores that failed before the check was run again, or None.
    - `untested`: names too rare in so many runs for a normal approximation.
    """

    law: str
    z: Mapping[str, float]
    runs: int
    advice: str = ""
    first: Mapping[str, float] | None = None
    untested: tuple[str, ...] = ()

    @property
    def worst(self) -> str:
        """The name with the largest |z|; NaN counts as infinite."""
        return max(self.z, key=lambda name: _size(self.z[name]))

    @property
    def max_abs_z(self) -> float:
        """The largest |z|; NaN counts as infinite."""
        return _size(self.z[self.worst])

    @property
    def ok(self) -> bool:
        """Are all |z| below 4?"""
        return self.max_abs_z < THRESHOLD

    def report(self, rows: int = 10) -> str:
        """The largest z-scores as a table, worst first."""
        names = sorted(self.z, key=lambda name: -_size(self.z[name]))[:rows]
        again = "" if self.first is None else ", after a failure with fewer runs"
        lines = [
            f"{self.law}: {'holds' if self.ok else 'BROKEN'}, max |z| = {self.max_abs_z:.2f} over "
            f"{len(self.z)} comparisons, {self.runs} runs{again}"
        ]
        lines += [f"  z = {self.z[name]:+8.2f}  {name}" for name in names]
        if self.untested:
            lines.append(f"  too rare to test: {len(self.untested)} ({self.untested[0]}, ...)")
        return "\n".join(lines)

    def check(self) -> "LawResult":
        """Itself if the law holds, else `LawError` with the table and advice."""
        if not self.ok:
            raise LawError(f"{self.report()}\n{self.advice}")
        return self

    def __bool__(self) -> bool:
        return self.ok

    def __repr__(self) -> str:
        return self.report()


Measure = Callable[[PRNGKeyArray, int], tuple[dict[str, float], list[str]]]


def decide(law: str, measure: Measure, key: PRNGKeyArray, runs: int, advice: str) -> LawResult:
    """Measure; a failure is measured again, four times the runs and new keys, before it counts."""
    z, untested = measure(jax.random.fold_in(key, 0), runs)
    result = LawResult(law, z, runs, advice, None, tuple(untested))
    if result.ok:
        return result
    again, untested = measure(jax.random.fold_in(key, 1), 4 * runs)
    return LawResult(law, again, 4 * runs, advice, z, tuple(untested))


def standardized(difference, standard_error, scale: Any = 1.0) -> np.ndarray:
    """Difference / standard error; the least error is float32's accumulated rounding of `scale`."""
    floor = 4 * np.finfo(np.float32).eps * np.abs(scale)
    return np.asarray(np.asarray(difference, np.float64) / np.hypot(standard_error, floor))


def roundings(difference, scale, dtype=np.float32) -> float:
    """The largest |difference| in units of `ROUNDINGS` roundings of a sum of size `scale`."""
    difference, scale = np.asarray(difference, np.float64), np.asarray(scale, np.float64)
    unit = ROUNDINGS * np.finfo(dtype).eps * (1 + np.abs(scale))
    ratio = np.abs(difference) / unit
    return float(np.max(np.where(np.isnan(ratio), np.inf, ratio), initial=0.0))


def _size(z: float) -> float:
    return float("inf") if np.isnan(z) else abs(float(z))
