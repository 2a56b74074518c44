"""Run chunks with checkpoints, be killed at random moments, go on; prints a digest of each result.

The parent imports and never starts JAX; each child is a fork of it, which spares the import.
"""

import hashlib
import json
import os
import random
import select
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint  # noqa: F401  (imported once, in the parent)
from small_models import hmm

from feynkac import inference
from feynkac.inference.chunks import run_in_chunks

KILLS, PER_RUN, LENGTH, STEPS = 20, 10, 80, 2


def attempt(folder: Path | None, pipe: int) -> None:
    """One process's life: run or go on with the run, saying each chunk."""

    def say(report):
        time.sleep(0.02)
        os.write(pipe, b".")

    particles = run_in_chunks(
        inference.SMC(16),
        jax.random.key(0),
        hmm(LENGTH),
        steps=STEPS,
        checkpoint=folder,
        callback=say,
    )
    parts = (particles.choices["z"], particles.log_weights, particles.ancestors)
    content = b"".join(np.asarray(x).tobytes() for x in parts)
    os.write(pipe, hashlib.sha256(content).hexdigest().encode())


def forked(folder: Path | None, kill_after: float | None) -> tuple[bool, str]:
    """Was the child killed, and what it said; it is killed that long after its first chunk."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(out)
        try:
            attempt(folder, into)
        except BaseException as error:
            os.write(into, repr(error).encode())
        os._exit(0)
    os.close(into)
    said, deadline = b"", None
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([out], [], [], left)[0]:
            os.kill(child, signal.SIGKILL)
            deadline = None
            continue
        new = os.read(out, 1 << 16)
        if not new:
            break
        said += new
        if kill_after is not None and deadline is None and said == new:
            deadline = time.monotonic() + kill_after
    os.close(out)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status), said.decode().lstrip(".")


def main(root: Path, seed: int) -> None:
    moments = random.Random(seed)
    began = time.monotonic()
    _, reference = forked(None, None)
    results, killed, partial = [], 0, 0
    while killed < KILLS:
        folder = root / f"run{len(results)}"
        for _ in range(min(PER_RUN, KILLS - killed)):
            # A chunk takes about 0.2 s, nearly all of it the writing of its checkpoint.
            dead, said = forked(folder, moments.uniform(0.0, 0.45))
            if not dead:
                break
            killed += 1
            names = [path.name for path in folder.iterdir()]
            unfinished = [n for n in names if not n.isdigit() or not done(folder / n)]
            partial += bool(unfinished)
        else:
            dead, said = forked(folder, None)
        results.append(said)
    print(
        json.dumps(
            {
                "reference": reference,
                "results": results,
                "killed": killed,
                "while_writing": partial,
                "seconds": time.monotonic() - began,
            }
        )
    )


def done(step: Path) -> bool:
    """Did orbax finish this checkpoint?"""
    return (step / "_CHECKPOINT_METADATA").exists() and (step / "commit_success.txt").exists()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
