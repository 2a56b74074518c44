"""What a regular constraint costs: tables of tokens, and decoding under it.

    python benchmarks/constraints.py                    # both tables, about 6 minutes
    python benchmarks/constraints.py --pairs 0 --outlines 3        # tables only, and outlines' own

Decoding: `inference.SMC` on SmolLM2-135M, 32 particles x 32 tokens, free and under the constraint,
in turn run by run with the same keys; time by computed tokens (particles x steps taken), as texts
under the constraint may end earlier. `--importance` leaves resampling out on both sides: what
remains is masks, their normalizers and the state of the automaton. Compilation and tables apart.
"""

import argparse
import sys
import time

import jax
import numpy as np
import timing

from feynkac import inference, models
from feynkac.cli.setup import cache_compilations
from feynkac.models.constraints import JsonSchema, Regex, Weighted
from feynkac.models.constraints.byte_dfa import byte_dfa
from feynkac.models.constraints.regex import tables_over
from feynkac.models.constraints.tables import token_functions

PROMPT = [{"role": "user", "content": "Write about a person from a small town, as JSON."}]
RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 20},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["shy", "brave", "curious"]}, "maxItems": 3},
        "about": {"type": "string", "maxLength": 200},
    },
    "required": ["name", "age", "tags", "about"],
}
CONSTRAINTS = {
    "date": Regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}"),
    "choice": Regex("(very )?(good|bad|indifferent)"),
    "sentences": Regex(r"([A-Z][a-z]*( [A-Za-z][a-z]*,?){2,12}[.!?] ?){1,6}"),
    "JSON record": JsonSchema(RECORD),
    "words of Unicode": Regex(r"\w+( \w+){3,7}\."),
}


def seconds(call):
    """Result and time of a call on the host."""
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def build_times(lm, outlines):
    """Seconds to the tables of each constraint, nothing of it built before."""
    vocabulary = models.Vocabulary.of(lm)
    print(f"Tables over {vocabulary.size} tokens, seconds; others are kept once built.\n")
    head = ["constraint", "states of bytes", "states x classes", "automaton of bytes"]
    head += ["functions of tokens", "all, on the device", "MB there", "outlines-core Index"]
    print("| " + " | ".join(head) + " |\n|---" + "|---:" * (len(head) - 1) + "|", flush=True)
    texts = vocabulary.texts
    for number, (name, constraint) in enumerate(CONSTRAINTS.items()):
        byte_dfa.cache_clear()
        tables_over.cache_clear()
        dfa, first = seconds(lambda c=constraint: byte_dfa(c.regex))
        _, second = seconds(lambda d=dfa: token_functions(d, vocabulary.token_bytes, texts))
        byte_dfa.cache_clear()
        automaton, whole = seconds(lambda c=constraint: jax.block_until_ready(c.over(vocabulary)))
        size = sum(x.nbytes for x in jax.tree.leaves(automaton))
        states, classes = automaton.transitions.shape
        row = [name, str(len(dfa.accepting)), f"{states} x {classes}"]
        row += [f"{first:.3f}", f"{second:.3f}", f"{whole:.3f}", f"{1e-6 * size:.1f}"]
        peer = f"{outlines_seconds(constraint.regex, vocabulary):.2f}" if number < outlines else ""
        print("| " + " | ".join([*row, peer]) + " |", flush=True)


def outlines_seconds(pattern, vocabulary):
    """Seconds of outlines-core for its own index over the tokens."""
    from outlines_core import Index
    from outlines_core import Vocabulary as Theirs

    ids = {}
    for token in vocabulary.texts:
        ids.setdefault(vocabulary.token_bytes[token], []).append(token)
    theirs = Theirs(vocabulary.eos, ids)
    return seconds(lambda: Index(pattern, theirs))[1]


def decoding(lm, options):
    """Overhead of each constraint asked for, and of its form with a look-ahead."""
    prefix = lm.prompt(PROMPT)
    free = models.generation(lm, prefix, options.length)
    n, resampler = options.particles, {"resampler": None} if options.importance else {}
    smc = inference.SMC(n, **resampler)
    automaton = CONSTRAINTS[options.constraint].over(models.Vocabulary.of(lm))
    bound = {"constrained": automaton}
    if options.weighted:
        log_weights = jax.nn.log_softmax(prefix.logits)
        bound = {"constrained": Weighted.of(automaton, log_weights, options.length)}
    stories = {"free": free} | {name: free * p for name, p in bound.items()}
    calls = {name: lambda key, story=story: smc.run(key, story) for name, story in stories.items()}
    keys = list(jax.random.split(jax.random.key(0), options.pairs + options.warm))
    evidence, resampled = [], []

    def tokens(particles):
        if bool(np.isfinite(particles.log_evidence)) and float(particles.log_evidence) != 0.0:
            evidence.append(float(particles.log_evidence))
            resampled.append(float(np.asarray(particles.resampled).sum()))
        return max(1, int(particles.lengths.max())) * n

    with timing.Others() as others:
        times = timing.paired(calls, options.pairs, keys, options.warm, tokens)
    rates = {name: 1.0 / np.median(t) for name, t in times.items()}
    kind = "importance sampling" if options.importance else "SMC"
    print(f"\nSmolLM2-135M, {kind}, N = {n}, {options.length} tokens, {options.constraint};")
    print(f"{options.pairs} pairs; log evidence {np.mean(evidence):.2f}, ", end="")
    print(f"{np.mean(resampled):.1f} resamplings a run.\n")
    print("| free, tokens/s | constrained, tokens/s | constrained / free, time [95 %] | others |")
    print("|---:|---:|---:|---:|")
    row = [f"{rates['free']:.1f}", f"{rates['constrained']:.1f}"]
    row += [timing.interval(times["constrained"], times["free"]), f"{others.share:.0%}"]
    print("| " + " | ".join(row) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=30, help="0: tables only")
    parser.add_argument("--warm", type=int, default=1)
    parser.add_argument("--particles", type=int, default=32)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--constraint", default="sentences", choices=list(CONSTRAINTS))
    parser.add_argument("--importance", action="store_true", help="without resampling")
    parser.add_argument("--weighted", action="store_true", help="with the look-ahead")
    parser.add_argument("--outlines", type=int, default=0, help="peer on the first so many")
    options = parser.parse_args()
    cache_compilations()
    lm = models.load("smollm2-135m-instruct")
    build_times(lm, options.outlines)
    if options.pairs:
        decoding(lm, options)


if __name__ == "__main__":
    sys.exit(main())
