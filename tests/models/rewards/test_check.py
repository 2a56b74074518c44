"""Checks: what counts as an answer. Their laws are tested with those of rewards."""

import numpy as np
import pytest
from oracles.host_texts import VOCABULARY

from feynkac import ppl
from feynkac.models.rewards.check import Check


def test_only_true_and_false_are_answers():
    answers = {"(": True, ")": False, "()": np.bool_(True), "((": 1, "))": None, "": "yes"}
    check = Check(answers.__getitem__, "answers").over(VOCABULARY)
    got = check.scores.value([*answers, "missing"])
    np.testing.assert_array_equal(got, [0, -np.inf, 0, np.nan, np.nan, np.nan, np.nan])
    assert set(check.failures) == {"((", "))", "", "missing"}
    assert check.calls == len(answers) + 1


def test_scores_are_kept_for_the_last_texts_only():
    asked = []
    check = Check(lambda texts: asked.append(texts) or [True] * len(texts), batched=True, cache=2)
    scores = check.scores.value
    for text in ("a", "b", "a", "c", "a", "b"):  # "b" was dropped for "c", "a" was just used
        scores([text])
    assert asked == [["a"], ["b"], ["c"], ["b"]]
    assert scores(["x", "y", "z", "x"]) == [0.0] * 4  # more than are kept, each asked once
    assert asked[-1] == ["x", "y", "z"]


def test_a_wrong_number_of_answers_fails_them_all():
    check = Check(lambda texts: [True], batched=True)
    assert np.isnan(check.scores.value(["a", "b"])).all() and len(check.failures) == 2
    with pytest.raises(ppl.ProgramError, match="over"):
        check.start(2)
