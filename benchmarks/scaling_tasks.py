"""Three tasks of reasoning-gym as short questions and solutions in lines of ten characters.

The questions, their answers and the scoring of answers are reasoning-gym's (Open-Thought, Apache
2.0), run in an environment of its own: `python scaling_tasks.py --serve`. What is ours is how a
question is written for a model of 32 characters, and the solution in steps that it learns to write.
A question is written as the line before the first one: every line follows from the one before.

    count_bits      0237:0:00;  0118:1:01;0059:0:01;0029:1:02;  half, its remainder, ones so far
    chain_sum       0003g2a   ; 997g2a   ;999 ...
    number_sorting  31415926a;  13145926b;11345296c;...         eight passes: neighbours in order

chain_sum is 3-6+2-0: the total modulo 1000, so that a negative one is its complement, and the terms
to come, a digit to be added, a letter to be subtracted (a: 0, ..., j: 9). Numbers are sorted by
odd-even transposition; the letter counts the passes, a small one ascending, a capital descending.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

WIDTH = 10
CHARACTERS = "0123456789abcdefghijABCDEFGHI: ;"
EOS = len(CHARACTERS)
VOCABULARY = EOS + 1
TERMS = 7  # of a sum
NUMBERS = 8  # to be sorted

CONFIGS = {
    "count_bits": {"min_n": 100, "max_n": 999},
    "chain_sum": {"min_terms": TERMS, "max_terms": TERMS, "min_digits": 1, "max_digits": 1},
    "number_sorting": {
        "min_numbers": 8,
        "max_numbers": 8,
        "min_decimals": 0,
        "max_decimals": 0,
        "min_value": 0,
        "max_value": 9,
    },
}
TASKS = tuple(CONFIGS)
STEPS = 11  # the end of the text included: what the longest right solution takes


class Problem(NamedTuple):
    """A question as the model reads it, and the lines of its solution."""

    task: str
    index: int
    prompt: str
    lines: tuple[str, ...]


def prompt_of(task: str, entry: dict[str, Any]) -> str:
    """The question of a reasoning-gym entry, as the model reads it."""
    meta = entry["metadata"]
    if task == "count_bits":
        return f"{meta['number']:04d}:0:00;"
    if task == "number_sorting":
        first = "a" if meta["direction"] == "ascending" else "A"
        return "".join(f"{int(float(x))}" for x in meta["original_numbers"]) + first + ";"
    words = ("+ " + meta["expression"]).split()
    pairs = zip(words[::2], words[1::2], strict=True)
    return _chain([int(term) + 10 * (sign == "-") for sign, term in pairs])


def _chain(terms: Any) -> str:
    return f"{terms[0]:03d}" + "".join(CHARACTERS[x] for x in terms[1:]) + ";"


def solve(task: str, prompt: str) -> tuple[str, ...]:
    """The lines of the right solution."""
    lines = []
    if task == "count_bits":
        number, ones = int(prompt[:4]), 0
        while number:
            number, bit = divmod(number, 2)
            ones += bit
            lines.append(f"{number:04d}:{bit}:{ones:02d};")
    elif task == "chain_sum":
        total, rest = int(prompt[:3]), prompt[3:9].strip()
        while rest:
            term = CHARACTERS.index(rest[0])
            total, rest = (total + (term if term < 10 else 10 - term)) % 1000, rest[1:]
            lines.append(f"{total:03d}{rest:6};")
    else:
        numbers, first = list(prompt[:NUMBERS]), prompt[NUMBERS]
        for done in range(NUMBERS):
            for i in range(done % 2, NUMBERS - 1, 2):
                numbers[i : i + 2] = sorted(numbers[i : i + 2], reverse=first == "A")
            lines.append("".join(numbers) + chr(ord(first) + done + 1) + ";")
    return tuple(lines)


def answer_of(task: str, text: str) -> str | None:
    """The answer of a written solution, as reasoning-gym wants it; None if malformed."""
    lines = [text[i : i + WIDTH] for i in range(0, len(text), WIDTH)]
    if not lines or any(len(x) != WIDTH or x[-1] != ";" for x in lines):
        return None
    field = {"count_bits": slice(7, 9), "chain_sum": slice(3), "number_sorting": slice(NUMBERS)}
    said = lines[-1][field[task]]
    if not said.isdigit():
        return None
    if task == "number_sorting":
        return str([f"{x}.0" for x in said])
    return str(int(said) - 1000 if task == "chain_sum" and int(said) >= 500 else int(said))


def encode(text: str) -> list[int]:
    return [CHARACTERS.index(c) for c in text]


def decode(tokens: Any) -> tuple[str, bool]:
    """The text up to its end, and whether it ended."""
    out = []
    for token in np.asarray(tokens).ravel():
        if token == EOS:
            return "".join(out), True
        out.append(CHARACTERS[int(token)])
    return "".join(out), False


def random_prompt(task: str, rng: np.random.Generator, held_out: frozenset[str]) -> str:
    """A question like the test's, by the laws of reasoning-gym, and none of them."""
    while True:
        if task == "count_bits":
            prompt = f"{rng.integers(100, 1000):04d}:0:00;"
        elif task == "chain_sum":
            prompt = _chain([rng.integers(10), *rng.integers(0, 20, TERMS - 1)])
        else:
            digits = "".join(str(x) for x in rng.integers(0, 10, NUMBERS))
            prompt = digits + str(rng.choice(["a", "A"])) + ";"
        if prompt not in held_out:
            return prompt


def problems(python: str, task: str, size: int, seed: int, cache: Path) -> list[Problem]:
    """Problems of the test set, from reasoning-gym the first time and then from the cache."""
    path = cache / f"{task}-{size}-{seed}.json"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        entries = _ask(python, {"task": task, "size": size, "seed": seed})["entries"]
        for entry in entries:
            lines = solve(task, prompt_of(task, entry))
            assert answer_of(task, "".join(lines)) == entry["answer"], entry
        path.write_text(json.dumps([prompt_of(task, e) for e in entries]))
    prompts = json.loads(path.read_text())
    return [Problem(task, i, p, solve(task, p)) for i, p in enumerate(prompts)]


def scores(python: str, task: str, size: int, seed: int, answers: list) -> list[float]:
    """reasoning-gym's score of each pair (index of the problem, answer)."""
    request = {"task": task, "size": size, "seed": seed, "answers": answers}
    return _ask(python, request)["scores"]


def _ask(python: str, request: dict) -> dict:
    done = subprocess.run(
        [python, __file__, "--serve"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(
            f"{python} could not run reasoning-gym; install it there (benchmarks/README.md):\n"
            + done.stderr
        )
    return json.loads(done.stdout)


def _serve() -> None:
    import reasoning_gym

    request = json.load(sys.stdin)
    data = reasoning_gym.create_dataset(
        request["task"], size=request["size"], seed=request["seed"], **CONFIGS[request["task"]]
    )
    entries = [data[i] for i in range(request["size"])]
    if "answers" not in request:
        json.dump({"entries": entries}, sys.stdout)
        return
    found = [data.score_answer(a, entry=entries[i]) for i, a in request["answers"]]
    json.dump({"scores": found}, sys.stdout)


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        _serve()
