"""What a run in chunks tells between two of them, and the bar that shows it."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from .particles import Particles


@dataclasses.dataclass(frozen=True)
class ChunkReport:
    """A run after `step` of `length` steps.

    - `steps_done`, `seconds`: of this call, compilation included.
    - `n_particles`, `ess`, `log_evidence` (nats), `resampled` (how often): of the population now.
    - `over`: every particle is done, or the run failed.
    - `particles()`: the weighted population now; ask before the next chunk, which uses its memory.
    """

    step: int
    length: int
    steps_done: int
    seconds: float
    n_particles: int
    ess: float
    log_evidence: float
    resampled: int
    over: bool
    particles: Callable[[], Particles] = dataclasses.field(repr=False, compare=False)


@contextlib.contextmanager
def bar(
    length: int, numbers: Callable[[Any], str] | None = None
) -> Iterator[Callable[[Any], None]]:
    """A progress bar; yields what updates it. It says compiling until the first report.

    `numbers(report)`: the text behind the bar; a report has `step`, `length` and `over`.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[numbers]}"),
    )
    with Progress(*columns) as shown:
        task = shown.add_task("compiling", total=length, numbers="")

        def update(report: Any) -> None:
            shown.update(
                task,
                completed=report.length if report.over else report.step,
                description="done" if report.over or report.step == report.length else "running",
                numbers=(numbers or _numbers)(report),
            )

        yield update


def _numbers(report: ChunkReport) -> str:
    return (
        f"ESS {report.ess:.1f}/{report.n_particles}  log Z {report.log_evidence:.3f}  "
        f"resampled {report.resampled}"
    )
