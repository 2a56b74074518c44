"""The command line on the real model, small; and what it says of bad arguments."""

import json

import pytest

from feynkac.__main__ import main
from feynkac.cli import demo, sample


@pytest.mark.slow
def test_sample_obeys_and_reports(capsys, tmp_path):
    picture = tmp_path / "run.png"
    options = ["--particles", "4", "--max-tokens", "6", "--without", "eE", "--favor", "s=2"]
    status = main(["sample", "Hello.", *options, "--json", "--picture", str(picture)])
    result = json.loads(capsys.readouterr().out)
    assert status == 0 and result["status"] == "ok"
    assert abs(sum(t["probability"] for t in result["texts"]) - 1) < 1e-6
    assert all("e" not in t["text"].lower() for t in result["texts"])
    assert len(result["ess_history"][0]) == 7
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--particles", "0"], "out of range"),
        (["--temperature", "0"], "out of range"),
        (["--ess-threshold", "2"], "out of range"),
        (["--favor", "sun=hot"], "WORD=NATS"),
        (["--favor", "=1"], "WORD=NATS"),
        (["--model", "/no/such/model.gguf"], "neither a file nor a known model"),
    ],
)
def test_bad_arguments_are_named(options, message, capsys):
    assert main(["sample", "Hello.", *options]) == 2
    assert message in " ".join(capsys.readouterr().out.split())


def test_bad_number_of_seeds():
    assert main(["demo", "--seeds", "0"]) == 2


def test_rewards_by_word():
    assert sample.favors(["Sun=2", "rain=-1.5", "sea"]) == {"sun": 2.0, "rain": -1.5, "sea": 1.0}


def test_the_demos_rules():
    assert demo.allowed(" cat") == 1.0 and demo.allowed(" the") == 0.0 == demo.allowed("7")
    assert demo.reward(" sun") == 1.0 and demo.reward("s") == 0.0 == demo.reward(" cat")
