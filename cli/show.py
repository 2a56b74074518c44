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
