"""Program checkers: what passes, what does not, and what is stopped."""

import numpy as np
import pytest

from feynkac import models
from feynkac.models.rewards import PythonProgram, code_block
from feynkac.models.rewards.program import alike

TESTS = [((1, 2), 3), ((2.5, 1), 3.5), (("a", "b"), "ab"), (([1], [2]), (1, 2))]


def test_the_fraction_of_tests_that_pass():
    program = PythonProgram("add", TESTS, seconds=20)
    right = "def add(a, b):\n    return a + b"
    got = program.scores(
        [right, f"Here:\n```python\n{right}\n```\nDone.", "def add(a, b):\n    return 3",
         "def add(a, b: syntax", "def sub(a, b): pass", "def add(a, b):\n    raise ValueError",
         "import os\ndef add(a, b): os._exit(0)"]
    )  # fmt: skip
    assert got == [1.0, 1.0, 0.25, 0.0, 0.0, 0.0, 0.0]


def test_what_runs_too_long_is_stopped():
    assert PythonProgram("f", [((), 1)], seconds=0.5)("def f():\n    while True: pass") == 0.0


def test_as_check_and_reward():
    program = PythonProgram("f", [((1,), 2), ((2,), 4)], seconds=20)
    vocabulary = models.Vocabulary([b"", b"f=lambda x:", b"2*x", b"x*x"], 0)
    texts = ["f=lambda x:2*x", "f=lambda x:x*x"]
    check, reward = program.check(), program.reward(3.0)
    assert check.over(vocabulary).scores.value(texts) == [0.0, -np.inf]
    assert reward.over(vocabulary).scores.value(texts) == [3.0, 1.5]
    assert reward.calls == 2 and not reward.failures


def test_comparison_is_of_values_and_types():
    assert alike(1, 1) and alike(1.0 + 1e-12, 1.0) and alike(2, 2.0)
    assert alike({"a": [1, None]}, {"a": [1, None]}) and not alike({"a": 1}, {"b": 1})
    assert not alike(True, 1) and not alike(1, True) and not alike([1], [1, 2])
    assert code_block("no code") == "no code" and code_block("```\nx\n") == "x\n"
    with pytest.raises(ValueError, match="at least one test"):
        PythonProgram("f", [])
