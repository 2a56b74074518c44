"""Genealogy, effective sample size and evidence of a run, as a figure."""

import io
from typing import Any

import numpy as np

from .particles import Particles

SURVIVOR, DEAD, GRID = "#1f4e79", "#c9ccd1", "#8a8f98"


def plot_particles(particles: Particles, axes: Any = None) -> Any:
    """Draw a run over time: who descends from whom, the effective sample size, the log evidence.

    Above, a point is a particle after a move and a line joins it to its parent; dark are the
    ancestors of the final population. Dotted lines mark the steps before which it was resampled.
    Move 0 is init.

    Args:
        particles: one run.
        axes: three matplotlib axes to draw on; by default a figure of its own.

    Returns:
        The matplotlib figure. No global state of matplotlib is touched.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: a batch of runs, or not three axes.
    """
    if particles.log_weights.ndim != 1:
        raise ValueError(
            "this is a batch of runs: instead of plotting all at once pick one, "
            "jax.tree.map(lambda x: x[0], particles)"
        )
    if axes is None:
        _, axes = _figure()
    axes = np.ravel(np.asarray(axes, dtype=object))
    if len(axes) != 3:
        raise ValueError(
            f"a run is drawn on three axes (genealogy, ESS, evidence), got {len(axes)}"
        )
    genealogy, size, evidence = axes
    resampled = np.flatnonzero(np.asarray(particles.resampled))
    n, moves = particles.log_weights.shape[0], len(np.asarray(particles.ess_history))
    _genealogy(genealogy, np.asarray(particles.ancestors), np.asarray(particles.lineage()))
    genealogy.set_ylabel("particle")

    time = np.arange(moves)
    size.plot(time, np.asarray(particles.ess_history), color=SURVIVOR, lw=1.4, **_dots(moves))
    size.set_ylim(0, n * 1.04)
    size.set_yticks([0, n / 2, n])
    size.set_ylabel("ESS")
    log_evidence = np.asarray(particles.log_evidence_history, float)
    log_evidence = np.where(np.isfinite(log_evidence), log_evidence, np.nan)
    evidence.plot(time, log_evidence, color=SURVIVOR, lw=1.4, **_dots(moves))
    evidence.set_ylabel(r"$\log\,\hat{Z}$  (nats)")
    evidence.set_xlabel("move")

    for axis in axes:
        for t in resampled:
            axis.axvline(t + 0.5, color=GRID, lw=0.7, ls=(0, (1, 2)), zorder=0)
        axis.set_xlim(-0.02 * moves - 0.2, (moves - 1) * 1.02 + 0.2)
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.tick_params(labelsize=8)
    genealogy.set_title(_title(particles, len(resampled)), fontsize=9, loc="left")
    return genealogy.figure


def _figure() -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'feynkac[plots]'") from error

    class NotebookFigure(Figure):
        """A figure that a notebook shows without any state of pyplot."""

        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png", dpi=120)
            return buffer.getvalue()

    figure = NotebookFigure(figsize=(7.0, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    ratios = {"height_ratios": [3.2, 1, 1]}
    axes = figure.subplots(3, 1, sharex=True, gridspec_kw=ratios)
    figure.align_ylabels(axes)
    return figure, axes


def _genealogy(axis: Any, ancestors: np.ndarray, lineage: np.ndarray) -> None:
    """Edges from each particle to its parent; two line collections, whatever their number."""
    from matplotlib.collections import LineCollection

    steps, n = ancestors.shape
    alive = np.zeros((steps + 1, n), bool)
    np.put_along_axis(alive, lineage, True, axis=1)
    t, i = np.meshgrid(np.arange(steps), np.arange(n), indexing="ij")
    edges = np.stack([np.stack([t, ancestors], -1), np.stack([t + 1, i], -1)], axis=2)
    thin = float(np.clip(12 / n, 0.12, 1.0))
    for chosen, color, width, order in (
        (~alive[1:], DEAD, 0.8, 1),
        (alive[1:], SURVIVOR, 1.5, 3),
    ):
        lines = LineCollection(
            edges[chosen].tolist(),
            colors=color,
            linewidths=max(0.35, width * thin**0.5),
            zorder=order,
        )
        lines.set_capstyle("round")
        axis.add_collection(lines)
    size = float(np.clip(260 / n, 0.4, 14))
    for chosen, color, order in ((~alive, DEAD, 2), (alive, SURVIVOR, 4)):
        x, y = np.nonzero(chosen)
        axis.scatter(x, y, s=size, color=color, linewidths=0, zorder=order)
    axis.set_ylim(n - 0.4, -0.6)
    axis.yaxis.get_major_locator().set_params(integer=True)


def _dots(moves: int) -> dict[str, Any]:
    return {"marker": "o", "markersize": 2.6} if moves <= 80 else {}


def _title(particles: Particles, resampled: int) -> str:
    unique = int(np.asarray(particles.unique_ancestors())[0])
    said = (
        f"{particles.log_weights.shape[0]} particles, resampled {resampled} times, "
        f"{unique} of the first have descendants"
    )
    return said if bool(particles.status) else f"{said} ({particles.status.message.split(':')[0]})"
