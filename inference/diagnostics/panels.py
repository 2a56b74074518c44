"""Figures of coverage, of values that should be uniform, and of a whole report."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from .plots import _TITLE, ACCENT, GRID, INK, PALE, _axes, _plain, plot_calibration

if TYPE_CHECKING:
    from .report import Report


def plot_coverage(
    curves: Mapping[str, Float[np.ndarray, "levels"]], runs: int, axes: Any = None
) -> Any:
    """Expected coverage at evenly spaced levels, with the pointwise 99% band of `runs` runs."""
    (axis,) = _axes(axes, (1, 1), (3.8, 3.4))
    levels = np.linspace(0, 1, len(next(iter(curves.values()))))
    noise = 2.576 * np.sqrt(levels * (1 - levels) / runs)
    axis.fill_between(levels, levels - noise, levels + noise, color=PALE, lw=0)
    axis.plot([0, 1], [0, 1], color=GRID, lw=0.8)
    for i, (name, curve) in enumerate(curves.items()):
        out = np.abs(curve - levels).max() > 1.628 / np.sqrt(runs)
        color = ACCENT if out else INK
        axis.plot(levels, curve, color=color, lw=1.6 if i == 0 else 0.9, label=name)
    axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="posterior mass of the ball", ylabel="coverage")
    axis.set_aspect("equal")
    axis.set_title("balls about references (TARP)", **_TITLE)
    _plain(axis)
    return axis.figure


def plot_uniform(values: Float[np.ndarray, "n"], axes: Any = None) -> Any:
    """Histogram of values in [0, 1], with the 99% band of each bar where they are uniform."""
    (axis,) = _axes(axes, (1, 1), (3.8, 3.0))
    bins = int(np.clip(len(values) // 25, 5, 25))
    expected = len(values) / bins
    noise = 2.576 * np.sqrt(expected * (1 - 1 / bins))
    axis.axhspan(expected - noise, expected + noise, color=PALE, lw=0)
    axis.hist(values, bins=bins, range=(0, 1), color=INK, histtype="step", linewidth=1.4)
    axis.set(xlim=(0, 1), ylim=(0, None), xlabel="probability of less", ylabel="data sets")
    axis.set_title("probability integral transform", **_TITLE)
    _plain(axis)
    return axis.figure


def plot_report(report: "Report", axes: Any = None) -> Any:
    """Ranks, their distribution functions and coverage above; TARP, k-hat and the verdict below."""
    drawn = _axes(axes, (2, 3), (11.0, 6.4))
    plot_calibration(report.calibration, drawn[:3])
    tarp = report.tarp
    levels = np.linspace(0, 1, 101)
    runs = len(next(iter(tarp.ranks.values())))
    plot_coverage({name: tarp.coverage(levels, name) for name in tarp.ranks}, runs, drawn[3])
    middle, right = drawn[4], drawn[5]
    if report.khats is None:
        middle.text(0.5, 0.5, "draws without weights:\nno k-hat", ha="center", color=GRID)
        middle.set_axis_off()
    else:
        khats = np.clip(np.nan_to_num(report.khats, nan=2.0), -0.5, 2.0)
        middle.hist(khats, bins=25, range=(-0.5, 2), color=PALE, edgecolor="white")
        middle.axvline(0.7, color=ACCENT, lw=1.0, ls=(0, (4, 2)))
        middle.set(xlabel="k-hat of the weights", ylabel="data sets")
        said = f"{np.mean(report.khats <= 0.7):.0%} reliable (at most 0.7)"
        middle.set_title(said, **_TITLE)
    right.set_axis_off()
    verdict = "no defect found" if report.p_value >= 0.01 else "NOT CALIBRATED"
    lines = [verdict, "", *(f"{n}: p = {p:.2g}" for n, p in report.p_values().items())]
    color = INK if report.p_value >= 0.01 else ACCENT
    right.text(0, 1, "\n".join(lines), va="top", fontsize=9, color=color, transform=right.transAxes)
    _plain(middle)
    return drawn[0].figure
