"""Printing results: texts with probabilities, evidence, effective sample size over time."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from ..inference import Particles
from ..models import LanguageModel, Reading, texts

BARS = "▁▂▃▄▅▆▇█"


@contextlib.contextmanager
def progress(console: Console) -> Iterator[Progress]:
    """A progress display that keeps moving while XLA compiles."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as shown:
        yield shown


def sparkline(values: Any, top: float) -> str:
    """Values from 0 to `top` as a line of bars."""
    levels = np.nan_to_num(np.asarray(values, float) / top, nan=0.0).clip(0, 1)
    return "".join(BARS[int(round(v * (len(BARS) - 1)))] for v in levels)


def text_table(title: str, readings: list[Reading], limit: int) -> Table:
    """Texts, most probable first."""
    table = Table(title=title, title_justify="left", show_lines=False, expand=True)
    table.add_column("probability", justify="right")
    table.add_column("particles", justify="right")
    table.add_column("text", ratio=1)
    for reading in readings[:limit]:
        text = escape(reading.text) + (
            "" if reading.finished else " [dim](cut at the length)[/dim]"
        )
        table.add_row(f"{reading.probability:.3f}", str(reading.particles), text)
    if len(readings) > limit:
        rest = readings[limit:]
        table.add_row(
            f"{sum(r.probability for r in rest):.3f}",
            str(sum(r.particles for r in rest)),
            f"[dim]{len(rest)} more texts[/dim]",
        )
    return table


def evidence_line(runs: list[Particles]) -> str:
    """Log Z-hat of the pooled runs with its standard error over runs (delta method)."""
    log_z = np.asarray([float(p.log_evidence) for p in runs])
    if not np.isfinite(log_z).any():
        return "-inf (no text of positive weight in any run)"
    relative = np.exp(log_z - log_z[np.isfinite(log_z)].max())
    pooled = np.log(relative.mean()) + log_z[np.isfinite(log_z)].max()
    if len(runs) == 1:
        return f"{pooled:.2f} nats"
    error = relative.std(ddof=1) / np.sqrt(len(runs)) / relative.mean()
    return f"{pooled:.2f} ± {error:.2f} nats ({len(runs)} seeds)"


def report(
    console: Console, lm: LanguageModel, runs: list[Particles], pooled: Particles, limit: int
) -> None:
    """Texts, evidence, effective sample size and status of runs of one target."""
    n = runs[0].log_weights.shape[0]
    console.print(text_table("Posterior texts", texts(lm, pooled), limit))
    console.print(f"log evidence            {evidence_line(runs)}")
    console.print(
        f"effective sample size   {float(jnp.mean(jnp.stack([p.ess for p in runs]))):.1f} of {n} a "
        "run, on average"
    )
    shown = np.asarray(runs[0].ess_history)
    console.print(f"  over time, first run  {sparkline(shown, n)}  (0 to {n})")
    failed = [p.status.message for p in runs if not p.status]
    if failed:
        console.print(f"[yellow]{len(failed)} of {len(runs)} runs failed:[/yellow] {failed[0]}")


def picture(lm: LanguageModel, particles: Particles, path: str) -> None:
    """Write the run's figure to `path`, every final particle's text beside its end."""
    tokenizer = lm.tokenizer
    assert tokenizer is not None  # the texts have been shown
    figure = particles.plot()
    figure.set_size_inches(13, 0.16 * particles.log_weights.shape[0] + 3.4)
    genealogy, (_, right) = figure.axes[0], figure.axes[0].get_xlim()
    weights = np.nan_to_num(np.asarray(particles.weights))
    rows, lengths = np.asarray(particles.choices["token"]), np.asarray(particles.lengths)
    for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        text = tokenizer.decode([int(t) for t in row[:length]]).replace("$", r"\$")
        style = {"color": "#1f2328", "alpha": 1.0} if weights[i] > 0 else {"color": "#9aa0a8"}
        shown = text if len(text) <= 90 else text[:89] + "…"
        genealogy.text(right + 0.3, i, shown, fontsize=7, va="center", clip_on=False, **style)
    figure.savefig(path, dpi=150, bbox_inches="tight")
