"""The best guess so far, while a filter is still at work."""

import dataclasses
import queue
import threading
from collections.abc import Iterator
from typing import Any

from jaxtyping import PRNGKeyArray

from ...inference.chunks import run_in_chunks
from ...inference.particles import Particles
from ...inference.progress import ChunkReport
from ...inference.smc import SMC
from .protocol import LanguageModel
from .reading import Reading, texts


@dataclasses.dataclass(frozen=True)
class Guess:
    """What a run has written after so many steps.

    `readings` are the distinct texts so far, most probable first, those that are under way among
    them; `report` is None in the last guess, whose `particles` are the result of the run.
    """

    readings: list[Reading]
    particles: Particles
    report: ChunkReport | None

    @property
    def text(self) -> str:
        """The most probable text so far; "" if all particles are dead."""
        return self.readings[0].text if self.readings else ""


def stream(
    lm: LanguageModel,
    smc: SMC,
    key: PRNGKeyArray,
    target: Any,
    *,
    steps: int = 16,
    site: str = "token",
    **options: Any,
) -> Iterator[Guess]:
    """Run a filter `steps` steps at a time; yields a `Guess` after each chunk, then the result.

    Law: the last guess holds the population of `run_in_chunks(smc, key, target, steps=steps)`; the
    ones before are weighted populations of the beginnings of texts, whose weights are those so far.
    The run goes on while the caller looks at a guess. It ends after the chunk under way when the
    caller leaves the loop. `options` go to `run_in_chunks`: `checkpoint`, `stop`, `callback`.
    """
    if lm.tokenizer is None:
        raise ValueError("this model has no tokenizer: use run_in_chunks and its callback")
    return _stream(lm, smc, key, target, steps, site, options)


def _stream(lm, smc, key, target, steps, site, options) -> Iterator[Guess]:
    guesses: queue.Queue = queue.Queue(maxsize=1)
    left = threading.Event()
    stop, callback = options.pop("stop", None), options.pop("callback", None)

    def tell(guess: Any) -> None:
        while not left.is_set():
            try:
                return guesses.put(guess, timeout=0.1)
            except queue.Full:
                pass

    def after(report: ChunkReport) -> None:
        particles = report.particles()
        tell(Guess(texts(lm, particles, site), particles, report))
        if callback is not None:
            callback(report)

    def stopped(report: ChunkReport) -> bool:
        return left.is_set() or (stop is not None and bool(stop(report)))

    def work() -> None:
        try:
            particles = run_in_chunks(
                smc, key, target, steps=steps, callback=after, stop=stopped, **options
            )
            tell(Guess(texts(lm, particles, site), particles, None))
        except BaseException as error:  # of the caller's thread, where it is raised
            tell(error)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        while True:
            guess = guesses.get()
            if isinstance(guess, BaseException):
                raise guess
            yield guess
            if guess.report is None:
                return
    finally:
        left.set()
        worker.join()
