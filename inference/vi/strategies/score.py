"""The score function estimator, REINFORCE (Williams 1992; Glynn 1990), with a baseline."""

from typing import Any

import equinox as eqx

from ..baselines import Baseline
from .base import Report, Strategy


class Default(Baseline):
    """The baseline given to `value_and_grad`."""


class Score(Strategy):
    """(objective - baseline) times the gradient of log q(draw); for every distribution.

    `baseline`: None, `Running()`, `Learned(fn)` or `LeaveOneOut()`; by default that of
    `value_and_grad(baseline=...)`.
    """

    baseline: Baseline | None = eqx.field(default_factory=Default)

    def refusal(self, d: Any) -> str | None:
        """None: any distribution with a density."""
        return None

    def report(self, key, d, value, log_prob):
        """See `Strategy.report`."""
        return Report(score=log_prob)
