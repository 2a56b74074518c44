"""Traces and histograms of chains, as a figure."""

import io
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..chains import Chains

ROWS = 6
COLORS = ("#1f4e79", "#c8553d", "#588157", "#8e6c8a", "#d4a017", "#4f5d75")


def plot_chains(chains: "Chains", axes: Any = None) -> Any:
    """A row an entry of a site (the first six): its trace, and its histogram, by chain.

    Histograms lie over each other where the chains agree; the title has R-hat and the bulk ESS.

    Args:
        chains: the draws.
        axes: matplotlib axes [rows, 2] to draw on; by default a figure of its own.

    Returns:
        The matplotlib figure. No global state of matplotlib is touched.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from ..chains import flat

    entries, many = [], len(chains.log_density[0]) >= 4
    r_hat, ess = (chains.r_hat(), chains.ess_bulk()) if many else ({}, {})
    for name, x in flat(chains.choices):
        x = np.asarray(x, float)
        for index in np.ndindex(*x.shape[2:]):
            label = f"{name}[{','.join(map(str, index))}]" if index else name
            said = f"R-hat {r_hat[name][index]:.3f}, ESS {ess[name][index]:.0f}" if many else ""
            entries.append((label, x[(..., *index)], said))
    entries = entries[: ROWS if axes is None else len(axes)]
    axes = _axes(len(entries)) if axes is None else np.asarray(axes, dtype=object)
    for (trace, histogram), (label, draws, said) in zip(axes, entries, strict=True):
        whole = bool(np.all(draws == np.round(draws))) and np.ptp(draws) < 40
        low, high = draws.min(), draws.max()
        bins = np.arange(low - 0.5, high + 1.5) if whole else np.linspace(low, high, 31)
        for i, chain in enumerate(draws):
            color = COLORS[i % len(COLORS)]
            trace.plot(chain, color=color, lw=0.6, alpha=0.8)
            counts, edges = np.histogram(chain, bins=bins, density=True)
            histogram.stairs(counts, edges, color=color, lw=1.2, orientation="horizontal")
        trace.set_ylabel(label)
        trace.set_title(said, fontsize=8, loc="left")
        histogram.set_xticks([])
        for axis in (trace, histogram):
            axis.spines[["top", "right"]].set_visible(False)
            axis.tick_params(labelsize=8)
    axes[-1][0].set_xlabel("draw")
    return axes[0][0].figure


def _axes(rows: int) -> Any:
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

    figure = NotebookFigure(figsize=(7.0, 0.9 + 1.3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure.subplots(
        rows, 2, sharey="row", squeeze=False, gridspec_kw={"width_ratios": [3.5, 1]}
    )
