"""Three tasks of reasoning-gym as short questions and solutions in lines of ten characters.

The questions, their answers and the scoring of answers are reasoning-gym's (Open-Thought, Apache
2.0), run in an environment of its own: `python scaling_tasks.py --serve`. What is ours is how a
question is written for a model of 26 characters, and the solution in steps that it learns to write.

    chain_sum        c+007-009+...  0+7=7000 ;7-9=8999 ;   last digit, term, total from its end on
    number_sorting   s<40123507...  07 12 35 ;40...        three numbers a line
    count_bits       b0237          0118:1:01;0059...      half of it, its last bit, ones so far

Totals are modulo 10000, so that a negative one is its complement.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

WIDTH = 10
PROMPT = 40
CHARACTERS = "0123456789+-=;:csb<> "
EOS = len(CHARACTERS)
VOCABULARY = EOS + 1

CONFIGS = {
    "chain_sum": {"min_terms": 5, "max_terms": 6, "min_digits": 1, "max_digits": 1},
    "number_sorting": {
        "min_numbers": 9,
        "max_numbers": 9,
        "min_decimals": 0,
        "max_decimals": 0,
        "min_value": 0,
        "max_value": 99,
    },
    "count_bits": {"min_n": 100, "max_n": 999},
}
TASKS = tuple(CONFIGS)
# Steps, the end of the text included; more than a right solution takes.
STEPS = {"chain_sum": 7, "number_sorting": 7, "count_bits": 12}


class Problem(NamedTuple):
    """A question as the model reads it, and the lines of its solution."""

    task: str
    index: int
    prompt: str
    lines: tuple[str, ...]


def prompt_of(task: str, entry: dict[str, Any]) -> str:
    """The question of a reasoning-gym entry, as the model reads it."""
    meta = entry["metadata"]
    if task == "chain_sum":
        words = ("+ " + meta["expression"]).split()
        pairs = zip(words[::2], words[1::2], strict=True)
        return "c" + "".join(f"{sign}{int(term):03d}" for sign, term in pairs)
    if task == "number_sorting":
        numbers = [f"{int(float(x)):02d}" for x in meta["original_numbers"]]
        return "s" + ("<" if meta["direction"] == "ascending" else ">") + "".join(numbers)
    return f"b{meta['number']:04d}"


def solve(prompt: str) -> tuple[str, ...]:
    """The lines of the right solution."""
    kind, body = prompt[0], prompt[1:]
    if kind == "c":
        total, lines = 0, []
        for term in (body[i : i + 4] for i in range(0, len(body), 4)):
            last, total = total % 10, (total + int(term)) % 10000
            lines.append(f"{last}{term[0]}{term[-1]}={f'{total:04d}'[::-1]} ;")
        return tuple(lines)
    if kind == "s":
        numbers = sorted((body[i : i + 2] for i in range(1, len(body), 2)), reverse=body[0] == ">")
        return tuple(" ".join(numbers[i : i + 3]) + " ;" for i in range(0, len(numbers), 3))
    number, ones, lines = int(body), 0, []
    while number:
        number, bit = divmod(number, 2)
        ones += bit
        lines.append(f"{number:04d}:{bit}:{ones:02d};")
    return tuple(lines)


def answer_of(task: str, text: str) -> str | None:
    """The answer of a written solution, as reasoning-gym wants it; None if malformed."""
    lines = [text[i : i + WIDTH] for i in range(0, len(text), WIDTH)]
    if not lines or any(len(x) != WIDTH or x[-1] != ";" for x in lines):
        return None
    try:
        if task == "chain_sum":
            total = int(lines[-1][4:8][::-1])
            return str(total - 10000 if total > 5000 else total)
        if task == "number_sorting":
            numbers = "".join(line[:9] for line in lines).split(" ")
            return str([f"{int(number)}.0" for number in numbers[:-1]])
        return str(int(lines[-1][7:9]))
    except ValueError:
        return None


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


def random_prompt(
    task: str, rng: np.random.Generator, held_out: frozenset[str], hard: bool = False
) -> str:
    """A question like the test's (or, unless `hard`, easier), and none of them."""
    while True:
        if task == "chain_sum":
            signs = ["+", *rng.choice(["+", "-"], rng.integers(4 if hard else 2, 6))]
            prompt = "c" + "".join(f"{s}{rng.integers(0, 10):03d}" for s in signs)
        elif task == "number_sorting":
            numbers = "".join(
                f"{x:02d}" for x in rng.integers(0, 100, 9 if hard else 3 * rng.integers(2, 5))
            )
            prompt = "s" + str(rng.choice(["<", ">"])) + numbers
        else:
            prompt = f"b{rng.integers(100 if hard else 10, 1000):04d}"
        if prompt not in held_out:
            return prompt


def problems(python: str, task: str, size: int, seed: int, cache: Path) -> list[Problem]:
    """Problems of the test set, from reasoning-gym the first time and then from the cache."""
    path = cache / f"{task}-{size}-{seed}.json"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        entries = _ask(python, {"task": task, "size": size, "seed": seed})["entries"]
        for entry in entries:
            lines = solve(prompt_of(task, entry))
            assert answer_of(task, "".join(lines)) == entry["answer"], entry
        path.write_text(json.dumps([prompt_of(task, e) for e in entries]))
    prompts = json.loads(path.read_text())
    return [Problem(task, i, p, solve(p)) for i, p in enumerate(prompts)]


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
