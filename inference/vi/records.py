"""What a run of an objective leaves for its surrogate, and how a run is told what to change."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ...ppl.partial import walk
from .strategies import Report

Path = tuple[str, ...]
"""An address: of a site in an objective, calls and `many`s included."""

Level = tuple[str, int | None]
"""A name on the way to a site, and the number of runs if it is a `many`."""

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
    change: Any


class Within(eqx.Module):
    """A change inside a call."""

    name: str = eqx.field(static=True)
    change: Any


class LeftOut(eqx.Module):
    """Take the mean of the others' results for that of one of the runs of a `many`."""

    name: str = eqx.field(static=True)
    index: Int[Array, ""]


def change_within(levels: tuple[Level, ...], index: Int[Array, " manys"], change: Any) -> Any:
    """A change at these levels, in the runs of the `many`s that `index` names.

    None takes the mean of the others for the result of the innermost `many`'s run.
    """
    if not levels:
        return change
    (name, n), *rest = levels
    if n is None:
        return Within(name, change_within(tuple(rest), index, change))
    if not rest and change is None:
        return LeftOut(name, index[0])
    return Inside(name, index[0], change_within(tuple(rest), index[1:], change))


class Site(eqx.Module):
    """A site of a run: leaves have the axes of the `many`s around it, then those of the guide."""

    levels: tuple[Level, ...] = eqx.field(static=True)
    path: Path = eqx.field(static=True)
    log_prob: Float[Array, "..."]
    active: Bool[Array, "..."]
    report: Report | None

    @property
    def address(self) -> Path:
        """The whole address."""
        return (*(name for name, _ in self.levels), *self.path)

    @property
    def runs(self) -> tuple[int, ...]:
        """Numbers of runs of the `many`s around it."""
        return tuple(n for _, n in self.levels if n is not None)


def sites_of(records: Records, levels: tuple[Level, ...] = ()) -> list[Site]:
    """All sites in the records of a run."""
    sites: list[Site] = []
    axis = sum(1 for _, n in levels if n is not None)
    for name, record in records.items():
        if isinstance(record, Called):
            sites += sites_of(record.inside, (*levels, (name, None)))
        elif isinstance(record, Many):
            n = jax.tree.leaves(record.values)[0].shape[axis]
            sites += sites_of(record.inside, (*levels, (name, n)))
        elif isinstance(record, Scored):
            active = jnp.ones(record.log_prob.shape, bool)
            report = Report(score=record.log_prob)
            sites.append(Site(levels, (name,), record.log_prob, active, report))
        elif isinstance(record, Drawn):
            sites += _drawn(name, record, levels)
    return sites


def _drawn(name: str, record: Drawn, levels: tuple[Level, ...]) -> list[Site]:
    sites: list[Site] = []

    def leaf(path, log_prob, active, report):
        active = jnp.ones(log_prob.shape, bool) if active is None else active
        path = path if path == (name,) else (name, *path)  # of a distribution, or of a program
        sites.append(Site(levels, path, log_prob, active, report))

    walk(leaf, record.log_probs, record.active, record.reports)
    return sites
