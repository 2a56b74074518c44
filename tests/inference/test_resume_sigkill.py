"""Runs killed twenty times, while they write checkpoints too, end with the same bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("sigkill_worker.py")


@pytest.mark.slow
def test_killed_runs_resume_to_the_same_bytes(tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, str(WORKER), str(tmp_path), "7"],
        env=env
        | {
            "PYTHONPATH": str(WORKER.parents[1]),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        },
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    print(said)
    assert said["killed"] >= 20 and said["while_writing"] >= 5
    assert len(said["reference"]) == 64
    assert set(said["results"]) == {said["reference"]}
