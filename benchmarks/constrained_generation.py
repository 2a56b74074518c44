"""Texts that match a regular expression, beside genlm-control and llamppl.

    python -m venv genlm
    genlm/bin/pip install genlm-control==0.4.1 genlm-backend==0.3.1 llamppl==0.2.3 gguf==0.19.0
    python benchmarks/constrained_generation.py --genlm genlm/bin/python

The target is the same everywhere: the model's texts that match the whole pattern and end (the end
counts as a token) within `--tokens` tokens, temperature 1. All draw from the locally constrained
law, resample systematically below half the particles (llamppl too), and weigh the end exactly.

- *SmolLM2*: two patterns, the same float32 weights and prompt tokens. The peers share one
  transformers model with the prompt's keys and values cached (`cache_kv`), batches as large as the
  population and a batching timeout of 1 ms; their caches of outputs are emptied between runs.
- *free*: a fixed vector of logits over 32,000 tokens instead of a network; with a pattern, and
  with a soft critic of each token that only weighs (its evidence is known exactly).

genlm-control runs as `AWRS(model, constraint)` and, on the narrower pattern, also as
`direct_token_sampler(model * constraint)` ("product"), which walks the tokens' trie in Python.
llamppl masks tokens with sets from our token automaton, whose making it is spared. The peers live
in a process of their own that waits while ours runs: runs are taken in turn, their order drawn anew
every round. Tokens are those of the final population, the end included. Compiling, loading, tries,
prompts and a first run (of 2 particles, for a peer) are apart. What each run gave goes to standard
error.
"""

import argparse
import functools
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from constrained_peers import AWRS, CRITIC, DIRECT, FREE, LLAMPPL, OURS, PATTERNS, PRODUCT, summary

LANES = {
    "record": [OURS, PRODUCT, AWRS, LLAMPPL],
    "sentence": [OURS, AWRS, LLAMPPL],
    "free": [OURS, AWRS],
    CRITIC: [OURS, DIRECT],
}


class Process:
    """The peers' process, seen from ours."""

    def __init__(self, python, folder):
        command = [python, str(Path(__file__).with_name("constrained_peers.py")), str(folder)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        pipes["env"] = {**os.environ, "TQDM_DISABLE": "1"}
        self.process = subprocess.Popen(command, **pipes)
        self.loading = self.answer()["seconds"]

    def answer(self):
        """The next answer."""
        line = self.process.stdout.readline()
        if not line:
            sys.exit("The peers' process ended: see its error above.")
        answer = json.loads(line)
        self.cpu = answer["cpu"]
        return answer

    def run(self, lane, case, seed, n):
        """A run of a peer."""
        order = {"lane": lane, "case": case, "n": n, "seed": seed}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self.answer()


# Ours.


def free_model():
    """The free model without a tokenizer, the critic, and the logits and bonus of each token."""
    import jax
    import jax.numpy as jnp
    from jaxtyping import Array

    from feynkac import models, ppl
    from feynkac.models.language.protocol import State

    class Table(models.LanguageModel):
        logits: Array
        tokenizer = None
        vocab_size: int = FREE
        eos: int = FREE - 1
        context: int = 1 << 20

        def prefill(self, tokens, length):
            return models.Prefix((), length, self.logits)

        def join(self, caches):
            return (), jnp.zeros(len(caches), jnp.int32)

        def start(self, prefix, max_tokens, gaps=False):
            return State(self.logits, ())

        def advance(self, prefix, state, token, slot, write=True, live=True):
            return State(self.logits, ())

        def replay(self, prefix, tokens, count, max_tokens):
            return State(self.logits, ())

        def log_probs(self, prefix, tokens):
            return jax.nn.log_softmax(self.logits)[tokens]

    class Critic(ppl.Potential):
        bonus: Array

        def start(self, length):
            return jnp.zeros(())

        def advance(self, state, symbol, context=None):
            return state + self.bonus[symbol]

        def log_prefix(self, state, remaining=None):
            return state

        def log_complete(self, state, context=None):
            return state

    logits = 2.0 * jax.random.normal(jax.random.key(1), (FREE,))
    logits = logits.at[-1].set(jax.nn.logsumexp(logits[:-1]) + math.log(0.02))
    bonus = jnp.where(jnp.arange(FREE) % 4 == 0, 0.0, -1.0)
    return Table, Critic, logits, bonus


def programs(lm, vocabulary, free, lengths):
    """Name of a case -> (model, bytes of each token, pattern)."""
    from feynkac import models, ppl

    table, critic, logits, bonus = free
    texts = vocabulary.token_bytes
    out = {}
    for case, length in lengths.items():
        if case == CRITIC:
            silent = table(logits.at[-1].set(-1e9))
            story = models.generation(silent, [0], length, at_length=ppl.Keep()) * critic(bonus)
            out[case] = story, None, None
            continue
        prompt, pattern = PATTERNS[case]
        regex = models.Regex(pattern)
        if prompt:
            chat = [{"role": "user", "content": prompt}]
            out[case] = models.generation(lm, chat, length) * regex, texts, pattern
        else:
            some = free_texts(vocabulary)
            regex = regex.over(models.Vocabulary((*some, b""), FREE - 1))
            out[case] = models.generation(table(logits), [0], length) * regex, some, pattern
    return out


def free_texts(vocabulary):
    """The first tokens of SmolLM2 that are text: those of the free model, the end left out."""
    return [vocabulary.token_bytes[i] for i in vocabulary.texts[: FREE - 1]]


def exact_evidences(logits, bonus, texts, length):
    """Log evidence of the free cases: of the pattern, by convolution over numbers of letters."""
    least, most = (int(x) for x in re.findall("[0-9]+", PATTERNS["free"][1]))
    logits, bonus = np.asarray(logits, float), np.asarray(bonus, float)
    p = np.exp(logits - np.logaddexp.reduce(logits))
    step = np.zeros(most + 1)
    for text, mass in zip(texts, p[:-1], strict=True):
        if len(text) <= most and re.fullmatch(b"[a-z ]+", text):
            step[len(text)] += mass
    written, total = np.eye(most + 1)[0], 0.0
    for _ in range(length):
        total += written[least:].sum() * p[-1]
        written = np.convolve(written, step)[: most + 1]
    gain = np.log((p * np.exp(bonus))[:-1].sum() / p[:-1].sum())
    return {"free": float(np.log(total)), CRITIC: length * float(gain)}


def ours(story, texts, pattern):
    """A run of ours, by seed and number of particles."""
    import jax

    from feynkac import inference

    def run(seed, n):
        smc = inference.SMC(n, resampler=inference.Systematic(ess_threshold=0.5))
        key = jax.random.key(seed)
        start = time.perf_counter()
        particles = jax.block_until_ready(smc.run(key, story))
        seconds = time.perf_counter() - start
        lengths, tokens = np.asarray(particles.lengths), np.asarray(particles.choices["token"])
        written = [b""] * n
        if texts:
            pairs = zip(tokens, lengths, strict=True)
            written = [b"".join(texts[i] for i in row[: k - 1]) for row, k in pairs]
        return summary(particles.log_weights, lengths, written, pattern or "", seconds)

    return run


# The comparison.


def mean_evidence(runs):
    """Log of the mean of Z-hat (unbiased), its standard error, and sd of log Z-hat, nats."""
    levels = np.array([run["log_z"] for run in runs])
    top = levels.max()
    if len(levels) < 2 or not np.isfinite(top):
        return top, math.nan, math.nan
    z = np.exp(levels - top)
    error = z.std(ddof=1) / np.sqrt(len(z)) / z.mean()
    return math.log(z.mean()) + top, error, levels.std(ddof=1)


def z_score(a, b):
    """How many standard errors two mean evidences differ by, on the scale of Z."""
    (log_a, error_a, _), (log_b, error_b, _) = a, b
    top = max(log_a, log_b)
    x, y = math.exp(log_a - top), math.exp(log_b - top)
    return (x - y) / math.hypot(x * error_a, y * error_b)


def rates(runs, what):
    """Of each run: `what` a second."""
    return np.array([run[what] / run["seconds"] for run in runs])


def compare(case, calls, n, options, process):
    """Rows of a case; an example of each library's texts."""
    import timing

    rounds = {PRODUCT: options.product_rounds, LLAMPPL: options.llamppl_rounds}
    rounds = {lane: min(rounds.get(lane, options.rounds), options.rounds) for lane in calls}
    first, runs = {}, {lane: [] for lane in calls if rounds[lane]}
    for lane, call in ((lane, calls[lane]) for lane in runs):
        start = time.perf_counter()
        call(10_000, n if lane == OURS else 2)
        first[lane] = time.perf_counter() - start
    rng = np.random.default_rng(0)
    began, cpu = time.perf_counter(), process.cpu if process else 0.0
    with timing.Others() as others:
        for i in range(options.rounds):
            for lane in rng.permutation([lane for lane in runs if i < rounds[lane]]):
                runs[lane].append(calls[lane](i, n))
                print(f"{case}, {lane}: {runs[lane][-1]}", file=sys.stderr, flush=True)
    spent = (time.perf_counter() - began) * (os.cpu_count() or 1)
    share = others.share - ((process.cpu - cpu) / spent if process else 0.0)
    levels = {lane: mean_evidence(of) for lane, of in runs.items()}
    more = [calls[OURS](options.rounds + i, n) for i in range(options.extra)]
    levels[OURS] = mean_evidence(runs[OURS] + more)
    for lane, of in runs.items():
        speed, size = rates(of, "tokens"), rates(of, "ess")
        level, error, spread = levels[lane]
        row = [f"{case}, N = {n}", lane, f"{np.median(speed):.0f}"]
        own = rates(runs[OURS], "tokens")[: len(of)]
        row.append("" if lane == OURS else timing.interval(own, speed))
        row += [f"{np.median(size):.2f}", f"{level:.2f} ± {error:.2f}"]
        row += ["" if lane == OURS else f"{z_score(levels[OURS], levels[lane]):+.1f}"]
        row += [f"{spread:.2f}", f"{all(run['matched'] for run in of)}", f"{first[lane]:.1f}"]
        print("| " + " | ".join(row) + f" | {max(0.0, share):.0%} |", flush=True)
    return {lane: of[0]["example"] for lane, of in runs.items()}


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--genlm", help="the Python with genlm-control and llamppl")
    parser.add_argument("--cases", nargs="+", default=list(LANES), choices=list(LANES))
    parser.add_argument("--particles", type=int, default=16, help="with SmolLM2")
    parser.add_argument("--free-particles", type=int, default=64, help="with the free model")
    parser.add_argument("--tokens", type=int, default=32, help="at most, the end included")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--llamppl-rounds", type=int, default=2)
    parser.add_argument("--product-rounds", type=int, default=1, help="of the product; 0: none")
    parser.add_argument("--extra", type=int, default=10, help="runs of ours for the evidence only")
    options = parser.parse_args()

    import jax

    from feynkac import models
    from feynkac.models.constraints.regex import tables_over
    from feynkac.models.constraints.tables import END, ENDING, START
    from feynkac.models.language.fetch import fetch_smollm2
    from feynkac.models.language.protocol import encode_prompt

    start = time.perf_counter()
    lm, free, prompts = models.load("smollm2-135m-instruct"), free_model(), {}
    vocabulary = models.Vocabulary.of(lm)
    loading = time.perf_counter() - start
    lengths = {case: options.tokens for case in options.cases}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for case in options.cases:
            if case == CRITIC or not PATTERNS[case][0]:
                continue
            prompt, pattern = PATTERNS[case]
            ids, count = encode_prompt(lm, [{"role": "user", "content": prompt}])
            prompts[case] = [int(i) for i in ids[: int(count)]]
            start = time.perf_counter()
            tables = tables_over(pattern, vocabulary)
            print(f"Token automaton of {case}: {time.perf_counter() - start:.1f} s.")
            state = {"start": START, "end": END, "ending": ENDING}
            arrays = {"classes": tables.classes, "transitions": tables.transitions}
            np.savez(folder / f"{case}.npz", **arrays, **state)
        special = {i for i in range(vocabulary.size)} - set(vocabulary.texts)
        raw = enumerate(vocabulary.token_bytes)
        told = {
            "gguf": str(fetch_smollm2()),
            "eos": lm.eos,
            "particles": options.particles,
            "tokens": lengths,
            "prompts": prompts,
            "texts": ["" if i in special else text.decode("latin-1") for i, text in raw],
            "free": [text.decode("latin-1") for text in free_texts(vocabulary)],
        }
        (folder / "told.json").write_text(json.dumps(told))
        np.savez(folder / "free.npz", logits=np.asarray(free[2]), bonus=np.asarray(free[3]))
        process = Process(options.genlm, folder) if options.genlm else None
        where = f"{jax.devices()[0].device_kind} x{os.cpu_count()}, jax {jax.__version__}"
        print(f"At most {options.tokens} tokens, {options.rounds} rounds; {where}.")
        peers = f", peers {process.loading:.0f} s" if process else ""
        print(f"Loading the model: ours {loading:.0f} s{peers}.\n")
        head = ["case", "library", "tokens/s", "feynkac / it [95 %]", "ESS/s", "log evidence"]
        head += ["z", "sd of log Z", "all match", "first run, s", "others"]
        print("| " + " | ".join(head) + " |\n|---|---" + "|---:" * (len(head) - 2) + "|")
        examples = {}
        for case, made in programs(lm, vocabulary, free, lengths).items():
            n = options.particles if case in prompts else options.free_particles
            calls = {OURS: ours(*made)}
            for lane in LANES[case][1:] if process else []:
                calls[lane] = functools.partial(process.run, lane, case)
            examples[case] = compare(case, calls, n, options, process)
        exact = exact_evidences(*free[2:], free_texts(vocabulary), options.tokens)
        for case in [case for case in examples if case in exact]:
            print(f"\nExact log evidence of {case}: {exact[case]:.2f}.")
        for case in prompts:
            print(f"\n{case}: " + "; ".join(f"{k}: {v!r}" for k, v in examples[case].items()))


if __name__ == "__main__":
    sys.exit(main())
