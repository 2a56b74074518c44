"""What a run of an objective leaves for its surrogate, and how a run is told what to change."""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Float, Int, PyTree

Records = dict[str, Any]
"""From names in an objective to `Drawn`, `Scored`, `Many` or `Called`."""


class Drawn(eqx.Module):
    """A draw from a guide: per site instance its log density, activity and strategy's report."""

    log_probs: Any
    active: Any
    reports: Any


class Scored(eqx.Module):
    """Log-probability of what was drawn by other means."""

    log_prob: Float[Array, "..."]


class Many(eqx.Module):
    """n runs: their results and their records, each leaf with a leading axis."""

    values: PyTree
    inside: Records


class Called(eqx.Module):
    """A sub-objective that was called once."""

    inside: Records


class AtDraws(eqx.Module):
    """Take the values of these sites of draws as given."""

    given: dict[str, Any]


class Inside(eqx.Module):
    """Run one of the runs of a `many` anew with a change, and take the others' results as known."""

    name: str = eqx.field(static=True)
    index: Int[Array, ""]
    override: Any


class Within(eqx.Module):
    """A change inside a call."""

    name: str = eqx.field(static=True)
    override: Any


class LeftOut(eqx.Module):
    """Take the mean of the others' results for that of one of the runs of a `many`."""

    name: str = eqx.field(static=True)
    index: Int[Array, ""]
