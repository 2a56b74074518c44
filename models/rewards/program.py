"""Programs that check programs: run generated Python apart, and compare what it returns.

The program runs in a process of its own (`python -I`, no inherited environment, an empty working
folder) with limits on time, memory and output, and is killed at the time limit. That stops
accidents. It is no sandbox: the program has the user's rights, files and network included. Run
models that you do not trust in a container.
"""

import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .check import Check
from .host import HostPotential, Reward

# Runs in the child, which is given the arguments but not the values that are expected.
_CHILD = """
import json, sys
job = json.load(sys.stdin)
try:
    import resource
    limits = {"RLIMIT_AS": job["memory"], "RLIMIT_FSIZE": 1 << 20, "RLIMIT_CPU": job["seconds"]}
    for name, limit in limits.items():
        resource.setrlimit(getattr(resource, name), (limit, limit))
except (ImportError, ValueError, OSError):
    pass
space = {"__name__": "program"}
exec(compile(job["code"], "<program>", "exec"), space)
results = []
for args in job["calls"]:
    try:
        result = [space[job["function"]](*args)]
        json.dumps(result)
    except Exception:
        result = None
    results.append(result)
with open(job["out"], "w") as file:
    json.dump(results, file)
"""

_FENCE = re.compile(r"```[a-zA-Z0-9_+-]*\n(.*?)(?:```|\Z)", re.DOTALL)


def code_block(text: str) -> str:
    """The first fenced block of a text, or all of it if there is none."""
    found = _FENCE.search(text)
    return found[1] if found else text


class PythonProgram:
    """Tests of a function that a text defines: `program(text)` is the fraction that pass.

    Args:
        function: the name that the text has to define.
        tests: pairs (args, expected); both are JSON values (a tuple is a list).
        seconds: time limit for all tests of one text.
        memory: memory limit in bytes, where the system has one.
        extract: gets the code out of the text; by default its first fenced block.
        workers: texts that run at the same time.

    A text whose code does not run, does not define the function or runs too long passes none. See
    the module's warning: this is no sandbox.
    """

    def __init__(
        self,
        function: str,
        tests: Sequence[tuple[Sequence[Any], Any]],
        *,
        seconds: float | int = 5.0,
        memory: int = 2**30,
        extract: Callable[[str], str] = code_block,
        workers: int | None = None,
    ):
        if not tests:
            raise ValueError("PythonProgram needs at least one test: (args, expected)")
        self.function, self.seconds, self.memory = function, seconds, memory
        self.calls = [list(args) for args, _ in tests]
        self.expected = [json.loads(json.dumps(expected)) for _, expected in tests]
        self.extract, self.workers = extract, workers or os.cpu_count() or 1

    def check(self, **options: Any) -> HostPotential:
        """The complete texts that pass all tests, as a `Check`; `options` are its own."""
        return Check(self._all_pass, f"PythonProgram({self.function})", batched=True, **options)

    def reward(self, nats: float | int = 1.0, **options: Any) -> Reward:
        """`nats` times the fraction of tests that a complete text passes; `options` of `Reward`."""

        def reward(texts):
            return [nats * x for x in self.scores(texts)]

        return Reward(reward, f"PythonProgram({self.function})", batched=True, **options)

    def scores(self, texts: Sequence[str]) -> list[float]:
        """The fraction of tests that each text passes."""
        with ThreadPoolExecutor(min(self.workers, max(1, len(texts)))) as pool:
            return list(pool.map(self, texts))

    def __call__(self, text: str) -> float:
        """The fraction of tests that the text passes."""
        results = self._run(self.extract(text))
        passed = [
            isinstance(result, list) and len(result) == 1 and alike(result[0], expected)
            for result, expected in zip(results, self.expected, strict=False)
        ]
        return sum(passed) / len(self.expected)

    def _all_pass(self, texts: Sequence[str]) -> list[bool]:
        return [score == 1.0 for score in self.scores(texts)]

    def _run(self, code: str) -> list:
        """What each call returned, in a list of one, or None; empty if the program failed."""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "results.json"
            job = {
                "code": code, "function": self.function, "calls": self.calls, "out": str(out),
                "memory": self.memory, "seconds": math.ceil(self.seconds) + 1,
            }  # fmt: skip
            process = subprocess.Popen(
                [sys.executable, "-I", "-c", _CHILD], cwd=folder, env={}, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
            try:
                process.communicate(json.dumps(job), timeout=self.seconds)
                results = json.loads(out.read_text())
                return results if isinstance(results, list) else []
            except (subprocess.TimeoutExpired, OSError, ValueError):
                return []
            finally:
                _end(process)


def _end(process: subprocess.Popen) -> None:
    """Kill what is left of a program and its children."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (OSError, AttributeError):
        process.kill()
    process.wait()


def alike(result: Any, expected: Any) -> bool:
    """Are two JSON values equal, floats to nine digits?"""
    if isinstance(expected, bool) or isinstance(result, bool):
        return result is expected
    if isinstance(expected, float) and isinstance(result, int | float):
        return math.isclose(result, expected, rel_tol=1e-9, abs_tol=1e-12)
    if isinstance(expected, list):
        return (
            isinstance(result, list)
            and len(result) == len(expected)
            and all(map(alike, result, expected))
        )
    if isinstance(expected, dict):
        return (
            isinstance(result, dict)
            and result.keys() == expected.keys()
            and all(alike(result[k], expected[k]) for k in expected)
        )
    return result == expected
