"""Inference-time scaling: accuracy against tokens under a noisy process reward.

Three tasks of reasoning-gym, decoders of a hundred thousand weights that write solutions in lines
(`scaling_train.py`), and a verifier of lines that errs at known rates. Particle filters weigh by
its verdicts as they come; best of n, votes and beams use the very same verdicts. Everything is run
on the device, a batch of problems times particles in one compiled loop.

    python benchmarks/scaling.py --gym gym/bin/python --cache cache

The verifier calls a right line right with probability 0.9 and a wrong one with probability 0.2; the
same line after the same text always gets the same verdict, so that no method can ask twice. The
score of a line is the log odds of being right given the verdict, at even prior odds: log(0.9 / 0.2)
or log(0.1 / 0.8). A line counts as right if it follows from the line before, so that a mistake that
slips through is not seen again. A text weighs its prior times the product of these odds.

All that is drawn is kept in the cache folder, so that a run that was stopped goes on.
"""

import argparse
import itertools
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import scaling_model as model
import scaling_plot as plot
import scaling_tasks as tasks
import scaling_train as training

from feynkac import inference
from feynkac.inference import search
from feynkac.inference.annealing import Entropic, HeuristicEntropic
from feynkac.inference.ledger import metered

BUDGETS = (1, 2, 4, 8, 16, 32)
ROWS = 800  # problems x particles that are run at once


def filters(n: int) -> dict[str, inference.SMC]:
    """Particle filters of n particles that resample after every line, as published."""
    every = inference.Systematic(ess_threshold=1.0)
    return {
        # Never active: the plain filter, by the program that is compiled for the next one.
        "particle filter": inference.SMC(n, every, annealing=Entropic(until=0.0)),
        "entropic, target kept": inference.SMC(n, every, annealing=Entropic()),
        "entropic, as published": inference.SMC(n, every, annealing=HeuristicEntropic()),
    }


def trees(n: int) -> dict[str, search.BeamSearch | search.DVTS]:
    """Beam searches that write n lines at each step: n/4 beams of 4 children (1 of 2 for n = 2)."""
    children = min(n, 4)
    shape = (n // children, children, model.reward_of, model.count)
    return {"beam": search.BeamSearch(*shape), "DVTS": search.DVTS(*shape)}


class Runs:
    """Everything that is drawn, each part once: a file for each in the cache folder."""

    def __init__(self, cache: Path, problems: dict[str, list], seed: int):
        self.cache, self.problems, self.seed = cache, problems, seed
        self.lm: dict[str, Any] = {}  # of each task
        cache.mkdir(parents=True, exist_ok=True)

    def get(self, task: str, method: str, n: int) -> dict[str, np.ndarray]:
        """Tokens [problems, n, T], log weights [problems, n] and tokens written [problems]."""
        name = f"{task}-{method}-{n}-{len(self.problems[task])}-{self.seed}"
        path = self.cache / (name.replace(" ", "_").replace(",", "") + ".npz")
        if not path.exists():
            np.savez_compressed(path.with_suffix(".part.npz"), **self._run(task, method, n))
            path.with_suffix(".part.npz").replace(path)
        with np.load(path) as file:
            return dict(file)

    def _run(self, task: str, method: str, n: int) -> dict[str, np.ndarray]:
        found = self.problems[task]
        size = min(len(found), max(1, ROWS // n))
        parts = []
        for start in range(0, len(found), size):
            batch = found[start : start + size]
            some = batch + [batch[-1]] * (size - len(batch))  # one compiled shape
            target = model.batch_target(self.lm[task], task, some)
            # Methods of n particles share their keys: they differ by what they do.
            key = jax.random.fold_in(jax.random.key(self.seed), start)
            part = self._one(method, n, key, target)
            parts.append({k: v[: len(batch)] for k, v in part.items()})
        return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}

    def _one(self, method: str, n: int, key, target) -> dict[str, np.ndarray]:
        if method in trees(n):
            beams = search.beams_many(trees(n)[method], key, target)
            return {
                "text": model.texts(beams.choices),
                "log_weights": np.asarray(beams.scores),
                "tokens": np.asarray(beams.tokens),
                "rewards": np.asarray(beams.rewards),
            }
        smc = inference.Importance(n) if method == "independent" else filters(n)[method]
        particles, spent = metered(smc, key, target, tokens=model.count, many=True)
        text = model.texts(particles.choices)
        each = np.sum(np.cumsum(text == tasks.EOS, axis=-1) <= 1, axis=-1)
        return {
            "text": text,
            "log_weights": np.asarray(particles.log_weights),
            "tokens": spent.tokens,
            "rewards": spent.rewards,
            "each": each,
        }


def answers(task: str, text: np.ndarray) -> np.ndarray:
    """What each text [problems, n, T] answers, None if it has no end or no answer."""
    out = np.empty(text.shape[:2], object)
    for i in np.ndindex(out.shape):
        written, ended = tasks.decode(text[i])
        out[i] = tasks.answer_of(task, written) if ended else None
    return out


def calibrated(runs: Runs, task: str, snapshots: list[Path], held_out: frozenset):
    """The model whose accuracy on 25 questions that are not the test's is nearest to 35 %.

    Looked for from the end of training backwards, until one is below; chosen once.
    """
    chosen = runs.cache / f"{task}-snapshot.txt"
    if not chosen.exists():
        rng, accuracy = np.random.default_rng(5), {}
        prompts = [tasks.random_prompt(task, rng, held_out) for _ in range(25)]
        asked = [tasks.Problem(task, i, p, tasks.solve(task, p)) for i, p in enumerate(prompts)]
        true = np.array([tasks.answer_of(task, "".join(p.lines)) for p in asked])
        for path in reversed(snapshots):
            target = model.batch_target(training.load(path), task, asked)
            text = runs._one("independent", max(BUDGETS), jax.random.key(9), target)["text"]
            accuracy[path.name] = float(np.mean(answers(task, text) == true[:, None]))
            if accuracy[path.name] < 0.35:
                break
        chosen.write_text(min(accuracy, key=lambda name: abs(accuracy[name] - 0.35)))
        print(f"{task}: accuracy on other questions: {accuracy}; {chosen.read_text()}", flush=True)
    return training.load(snapshots[0].parent / chosen.read_text())


def pick(votes) -> str | None:
    return votes[0].answer if votes else None


def soft(log_weights: np.ndarray) -> np.ndarray:
    top = log_weights.max()
    return np.exp(log_weights - top) if np.isfinite(top) else np.zeros_like(log_weights)


def independent(said: np.ndarray, log_w: np.ndarray, n: int, draws: int, rng) -> dict[str, list]:
    """Answers chosen from subsets of n of one problem's candidates, several subsets each."""
    out: dict[str, list] = {"best of n": [], "majority vote": [], "weighted vote": []}
    for _ in range(1 if n == len(said) else draws):
        some = rng.choice(len(said), n, replace=False)
        best = some[np.argmax(log_w[some])]
        out["best of n"].append(said[best])
        out["majority vote"].append(pick(search.tally(list(said[some]))))
        out["weighted vote"].append(pick(search.tally(list(said[some]), soft(log_w[some]))))
    return out


def any_right(hits: np.ndarray, count: int, n: int) -> np.ndarray:
    """The chance that n of `count` candidates, `hits` of them right, hold a right one."""
    return np.array([1 - math.comb(count - int(h), n) / math.comb(count, n) for h in hits])


def evaluate(runs: Runs, task: str, methods, budgets, right, draws: int = 20) -> dict[str, dict]:
    """Per method the chance of a right answer [problems, budgets], and the tokens spent."""
    found = runs.get(task, "independent", max(BUDGETS))
    said, log_w = answers(task, found["text"]), found["log_weights"]
    rng, each = np.random.default_rng(0), found["each"].mean()
    hits = np.array([sum(right(i, a) for a in row) for i, row in enumerate(said)])
    columns: dict[str, list] = {}

    def chance(chosen):
        return np.array([np.mean([right(i, a) for a in some]) for i, some in enumerate(chosen)])

    for n in budgets:
        alone = [independent(*both, n, draws, rng) for both in zip(said, log_w, strict=True)]
        for name in alone[0]:
            columns.setdefault(name, []).append((chance([x[name] for x in alone]), n * each))
        oracle = any_right(hits, said.shape[1], n)
        columns.setdefault("oracle", []).append((oracle, n * each))
        for name in methods:
            if n == 1:  # a filter of one particle and a beam of one child are one draw
                columns.setdefault(name, []).append(columns["best of n"][-1])
                continue
            part = runs.get(task, name, n)
            both = zip(answers(task, part["text"]), part["log_weights"], strict=True)
            if name in trees(n):
                chosen = [[row[np.argmax(w)]] for row, w in both]
            else:
                chosen = [[pick(search.tally(list(row), soft(w)))] for row, w in both]
            columns.setdefault(name, []).append((chance(chosen), part["tokens"].mean()))
    return {
        name: {
            "right": np.stack([c for c, _ in cells], 1),
            "tokens": np.array([t for _, t in cells]),
        }
        for name, cells in columns.items()
    }


class Scorer:
    """Is an answer the right one? reasoning-gym is asked once for each pair, kept in the cache.

    Its full score is not enough: for sorted numbers it also goes to lists that are nearly right.
    """

    def __init__(self, python: str, task: str, problems: list, seed: int, cache: Path):
        size = len(problems)
        self.true = [tasks.answer_of(task, "".join(p.lines)) for p in problems]
        self.ask = lambda pairs: tasks.scores(python, task, size, seed, pairs)
        self.path = cache / f"{task}-{size}-{seed}-scores.json"
        self.known = json.loads(self.path.read_text()) if self.path.exists() else {}

    def learn(self, said: list[np.ndarray]) -> None:
        """Ask about all answers [problems, n] that are not known yet."""
        pairs = {(i, a) for x in said for i, row in enumerate(x) for a in row if a is not None}
        new = sorted((i, a) for i, a in pairs if f"{i}:{a}" not in self.known)
        if new:
            for (i, a), score in zip(new, self.ask(new), strict=True):
                self.known[f"{i}:{a}"] = score
            self.path.write_text(json.dumps(self.known))

    def __call__(self, i: int, answer: str | None) -> float:
        return float(answer == self.true[i] and self.known[f"{i}:{answer}"] >= 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gym", default="gym/bin/python", help="a Python that has reasoning-gym")
    parser.add_argument("--cache", type=Path, default=Path("cache/scaling"))
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS)
    parser.add_argument("--tasks", nargs="+", default=tasks.TASKS, choices=tasks.TASKS)
    every = (*filters(2), *trees(2))
    parser.add_argument("--methods", nargs="+", default=every, choices=every)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--picture", default="benchmarks/scaling.png")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(args.cache / "compiled"))
    found = {
        task: tasks.problems(args.gym, task, args.problems, args.seed, args.cache)
        for task in tasks.TASKS
    }
    held_out = frozenset(p.prompt for some in found.values() for p in some)
    runs, results = Runs(args.cache, found, args.seed), {}
    for task in args.tasks:
        snapshots = training.snapshots(args.cache / "model" / task, task, held_out)
        runs.lm[task] = calibrated(runs, task, snapshots, held_out)
        written = [runs.get(task, "independent", max(BUDGETS))["text"]]
        for name, n in itertools.product(args.methods, args.budgets):
            if n > 1:
                written.append(runs.get(task, name, n)["text"])
                print(f"{task}, {name}, N = {n}: done", flush=True)
        scorer = Scorer(args.gym, task, found[task], args.seed, args.cache)
        scorer.learn([answers(task, text) for text in written])
        results[task] = evaluate(runs, task, args.methods, args.budgets, scorer)
    plot.table(results, args.budgets)
    plot.picture(results, args.budgets, args.picture)


if __name__ == "__main__":
    main()
