"""Figures of weights, of a run over time and of calibration; no state of pyplot is touched."""

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from ..particles import Particles
from ..resampling import effective_sample_size
from .psis import Khat, psis

if TYPE_CHECKING:
    from .calibration import Calibration

INK, ACCENT, PALE, GRID = "#1f4e79", "#b5442e", "#c9d6e3", "#8a8f98"


def plot_weights(particles: Particles, axes: Any = None) -> Any:
    """Log-weights of one run: their histogram, and how few particles carry the mass.

    Left, log-weights about the log mean weight (nats), by number and by weight; zero weights are
    counted in the title. Right, the share of the total that the largest hold, with the effective
    sample size marked, and k-hat where ArviZ is installed.

    Args:
        particles: one run.
        axes: two matplotlib axes; by default a figure of its own.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: a batch of runs, a dead or NaN population, or not two axes.
    """
    _one_run(particles)
    log_w = np.asarray(particles.log_weights, np.float64)
    if not np.isfinite(log_w.max()):
        raise ValueError(f"there are no weights to show: {particles.status.message}")
    left, right = _axes(axes, (1, 2), (8.0, 3.0))
    n, alive = len(log_w), log_w[np.isfinite(log_w)]
    mean = np.logaddexp.reduce(log_w) - np.log(n)
    shown = alive - mean
    # The far left says nothing: it is drawn at the edge.
    shown = np.maximum(shown, np.quantile(shown, 0.005))
    pad = max(0.5, 0.03 * np.ptp(shown))
    span = (shown.min() - pad, shown.max() + pad)
    bins = int(np.clip(2 * np.sqrt(len(alive)), 8, 60))
    left.hist(shown, bins=bins, range=span, color=PALE, edgecolor="white", linewidth=0.5)
    # The same histogram by weight: where the estimate comes from.
    twin = left.hist(
        shown,
        bins=bins,
        range=span,
        weights=np.exp(shown),
        color=INK,
        histtype="step",
        linewidth=1.4,
    )
    left.axvline(0, color=ACCENT, lw=1.0, ls=(0, (4, 2)))
    left.set_ylim(0, 1.12 * max(1, twin[0].max(), _tallest(left)))
    left.set_xlabel("log-weight, nats above the mean weight")
    left.set_ylabel("particles")
    left.legend(
        handles=_handles(
            ("count", PALE, "patch"), ("by weight", INK, "line"), ("mean", ACCENT, "dash")
        ),
        fontsize=8,
        frameon=False,
        loc="best",
    )
    zero = n - len(alive)
    left.set_title(f"{n} particles" + (f", {zero} of weight zero" if zero else ""), **_TITLE)

    share = np.cumsum(np.sort(np.exp(log_w - mean))[::-1]) / n
    size = float(effective_sample_size(particles.log_weights))
    rank = np.arange(1, n + 1)
    right.plot(rank, share, color=INK, lw=1.6)
    right.plot(rank, rank / n, color=GRID, lw=0.9, ls=(0, (1, 2)))
    right.axvline(size, color=ACCENT, lw=1.0, ls=(0, (4, 2)))
    right.annotate(
        f"ESS {size:.3g}",
        (size, 0.04),
        xytext=(4, 0),
        textcoords="offset points",
        fontsize=8,
        color=ACCENT,
        ha="left" if size < 0.7 * n else "right",
    )
    right.set_xlim(0 if n < 50 else 1, n)
    if n >= 50:
        right.set_xscale("log")
    right.set_ylim(0, 1.03)
    right.set_xlabel("largest weights")
    right.set_ylabel("share of the total")
    right.set_title(_khat_title(particles, n), **_TITLE)
    _plain(left, right)
    return left.figure


def plot_history(particles: Particles, axes: Any = None) -> Any:
    """A run over time: effective sample size, log evidence and, with one, the annealing path.

    Move 0 is init; dotted lines mark resampling.

    Args:
        particles: one run.
        axes: two matplotlib axes, or three where the run was annealed.
    """
    _one_run(particles)
    exponents = None if particles.exponents is None else np.asarray(particles.exponents)
    rows = 2 if exponents is None else 3
    shape = (rows, 1)
    drawn = _axes(axes, shape, (7.0, 1.5 * rows + 0.6))
    n = particles.log_weights.shape[0]
    ess = np.asarray(particles.ess_history, float)
    moves = np.arange(len(ess))
    marks = {"marker": "o", "markersize": 2.6} if len(moves) <= 80 else {}
    drawn[0].fill_between(moves, ess, color=PALE, lw=0)
    drawn[0].plot(moves, ess, color=INK, lw=1.4, **marks)
    drawn[0].set_ylim(0, n * 1.04)
    drawn[0].set_yticks([0, n / 2, n])
    drawn[0].set_ylabel("ESS")
    log_z = np.asarray(particles.log_evidence_history, float)
    drawn[1].plot(moves, np.where(np.isfinite(log_z), log_z, np.nan), color=INK, lw=1.4, **marks)
    drawn[1].set_ylabel(r"$\log\,\hat{Z}$ (nats)")
    if exponents is not None:
        drawn[2].plot(moves, exponents, color=ACCENT, lw=1.4, **marks)
        drawn[2].axhline(1, color=GRID, lw=0.8, ls=(0, (1, 2)))
        drawn[2].set_ylim(min(0, exponents.min()), max(1.05, 1.05 * exponents.max()))
        drawn[2].set_ylabel("exponent")
    resampled = np.flatnonzero(np.asarray(particles.resampled))
    for axis in drawn:
        for t in resampled:
            axis.axvline(t + 0.5, color=GRID, lw=0.6, ls=(0, (1, 2)), zorder=0)
        axis.set_xlim(-0.3, len(moves) - 0.7)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.label_outer()
    drawn[-1].set_xlabel("move")
    said = f"{n} particles, resampled {len(resampled)} times"
    drawn[0].set_title(said, **_TITLE)
    drawn[0].figure.align_ylabels(drawn)
    _plain(*drawn)
    return drawn[0].figure


def plot_calibration(result: "Calibration", axes: Any = None, most: int = 6) -> Any:
    """Ranks of the worst quantities, their distribution functions, and expected coverage.

    Left, histograms of ranks, the most suspicious first, with the 99% band of each bar. Middle, the
    empirical distribution function of the ranks less the uniform one, with a 99% band that holds
    simultaneously (Kolmogorov). Right, expected coverage of highest-density regions.

    Args:
        result: what `sbc` returned.
        axes: three matplotlib axes; by default a figure of its own.
        most: how many quantities to show.
    """
    from .calibration import LOG_DENSITY

    first, middle, right = _axes(axes, (1, 3), (11.0, 3.2))
    p_values = result.p_values()
    names = sorted(p_values, key=p_values.__getitem__)[:most]
    runs = len(next(iter(result.ranks.values())))
    bins = int(max(2, min(20, result.draws + 1, runs // 10)))
    edges = np.round(np.linspace(0, result.draws + 1, bins + 1))
    expected = runs * np.diff(edges) / (result.draws + 1)
    noise = 2.576 * np.sqrt(expected * (1 - 1 / bins))
    first.fill_between(
        edges,
        *(np.append(b, b[-1]) for b in (expected - noise, expected + noise)),
        step="post",
        color=PALE,
        lw=0,
    )
    grid = np.arange(result.draws + 2) / (result.draws + 1)
    shades = [ACCENT if p_values[n] * len(p_values) < 0.01 else INK for n in names]
    for i, (name, color) in enumerate(zip(names, shades, strict=True)):
        counts = np.histogram(result.ranks[name], edges - 0.5)[0]
        alpha = 1.0 if i == 0 else 0.45
        width = 1.6 if i == 0 else 0.9
        first.stairs(counts, edges, baseline=None, color=color, lw=width, alpha=alpha)
        below = np.cumsum(np.bincount(result.ranks[name], minlength=result.draws + 1)) / runs
        middle.plot(grid, np.append(0, below) - grid, color=color, lw=width, alpha=alpha)
    first.set_ylim(bottom=0)
    first.set_xlim(0, result.draws + 1)
    first.set_xlabel("rank of the truth")
    first.set_ylabel("simulations")
    worst = f"worst: {names[0]}, p = {p_values[names[0]]:.2g}" if runs else "no ranks"
    first.set_title(worst, **_TITLE)
    band = 1.628 / np.sqrt(runs)
    middle.axhspan(-band, band, color=PALE, lw=0)
    middle.axhline(0, color=GRID, lw=0.8)
    middle.set_xlim(0, 1)
    middle.set_xlabel("rank / draws")
    middle.set_ylabel("ECDF - uniform")
    middle.set_title(f"{len(names)} of {len(p_values)} quantities, {runs} simulations", **_TITLE)

    levels = np.linspace(0, 1, 101)
    covered = result.coverage(levels)
    spread = 2.576 * np.sqrt(levels * (1 - levels) / runs)
    right.fill_between(levels, levels - spread, levels + spread, color=PALE, lw=0)
    right.plot([0, 1], [0, 1], color=GRID, lw=0.8)
    bad = p_values[LOG_DENSITY] * len(p_values) < 0.01
    right.plot(levels, covered, color=ACCENT if bad else INK, lw=1.6)
    right.set_xlim(0, 1)
    right.set_ylim(0, 1)
    right.set_aspect("equal")
    right.set_xlabel("posterior mass of the region")
    right.set_ylabel("expected coverage")
    right.set_title("highest-density regions", **_TITLE)
    _plain(first, middle, right)
    return first.figure


_TITLE = {"fontsize": 9, "loc": "left"}


def _khat_title(particles: Particles, n: int) -> str:
    try:
        k = Khat(float(psis(particles.log_weights)[1]), n)
    except ImportError:
        return ""
    if not np.isfinite(k.k):
        return ""
    said = "reliable" if k.ok else "not reliable"
    return rf"$\hat k$ = {k.k:.2f}, {said} (threshold {k.threshold:.2f})"


def _tallest(axis: Any) -> float:
    return max(
        (patch.get_height() for patch in axis.patches if hasattr(patch, "get_height")), default=1
    )


def _handles(*entries: tuple[str, str, str]) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    return [
        Patch(facecolor=color, label=label)
        if kind == "patch"
        else Line2D(
            [], [], color=color, lw=1.4, ls="-" if kind == "line" else (0, (4, 2)), label=label
        )
        for label, color, kind in entries
    ]


def _plain(*axes: Any) -> None:
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        axis.xaxis.label.set_size(9)
        axis.yaxis.label.set_size(9)


def _one_run(particles: Particles) -> None:
    if particles.log_weights.ndim != 1:
        raise ValueError(
            "this is a batch of runs: instead of plotting all at once pick one, "
            "jax.tree.map(lambda x: x[0], particles)"
        )


def _axes(axes: Any, shape: tuple[int, int], size: tuple[float, float]) -> np.ndarray:
    """The user's axes, flat, or those of a new figure that a notebook shows by itself."""
    count = shape[0] * shape[1]
    if axes is not None:
        axes = np.ravel(np.asarray(axes, dtype=object))
        if len(axes) != count:
            raise ValueError(f"this is drawn on {count} axes, got {len(axes)}")
        return axes
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

    figure = NotebookFigure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return np.ravel(figure.subplots(*shape, sharex=shape[0] > 1 and shape[1] == 1))
