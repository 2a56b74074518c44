"""What the framework costs: `inference.SMC` on the demo's program against the same loop by hand.

    python benchmarks/dsl_cost.py                                  # compiled cost, SmolLM2
    python benchmarks/dsl_cost.py --pairs 30 --cases 8x16          # and time, in interleaved pairs
    python benchmarks/dsl_cost.py --random 4096x256x4 --pairs 30   # V x d x layers, random

Compiled cost is XLA's own count (`cost_analysis`) of floating-point operations and bytes accessed;
it counts the body of a loop once and both branches of a conditional, on both sides alike.
`cache copies` are the bytes that one step moves in `copy` instructions of the shape of a suffix
cache: in a step that does not resample, and in the branch that does (a gather cannot be done in
place).
"""

import argparse
import re
from collections import Counter

import handwritten
import jax
import jax.numpy as jnp
import numpy as np
import timing

from feynkac import inference, models, ppl
from feynkac.cli.setup import cache_compilations
from feynkac.cli.story import steered
from feynkac.inference.smc import _run
from feynkac.models.language import random_llama
from feynkac.ppl.target import as_target

TEMPERATURE = 0.8


def tables(vocabulary):
    """A hard constraint (two thirds of the tokens) and a soft reward (one nat for a fifth)."""
    index = jnp.arange(vocabulary)
    return jnp.asarray(index % 3 != 1, dtype=float), jnp.where(index % 5 == 0, 1.0, 0.0)


def compiled(smc, key, model):
    """`smc.run(key, model)` as XLA has it, for its cost and text."""
    return _run.lower(smc, key, as_target(model), None).compile()


class Case:
    """Both programs at one size, lowered and compiled."""

    def __init__(self, lm, prefix, n, length, at_length=None):
        at_length = at_length or ppl.Reject()
        allowed, reward = tables(lm.vocab_size)
        story, smc = steered(lm, prefix, length, TEMPERATURE, allowed, reward, at_length)
        smc = inference.SMC(n, proposal=smc.proposal)
        key, reject = jax.random.key(0), isinstance(at_length, ppl.Reject)
        data = (lm, prefix, jnp.asarray(TEMPERATURE), allowed, reward)
        sizes = (n, length, 0.5, reject)
        self.run_ours = lambda key: smc.run(key, story)
        self.run_hand = lambda key: handwritten.steered(key, *data, *sizes)
        self.ours = compiled(smc, key, story)
        self.hand = handwritten.steered.lower(key, *data, *sizes).compile().compiled

    def cost(self, name):
        """XLA's count for (feynkac, by hand)."""
        return tuple(p.cost_analysis()[name] for p in (self.ours, self.hand))


def instructions(text):
    """Optimized HLO as {computation: [(opcode, shape, line)]}."""
    computations, current = {}, None
    for line in text.splitlines():
        head = re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line)
        if head and not line.startswith(" "):
            current = computations.setdefault(head[1], [])
        elif current is not None:
            found = re.match(r"\s+(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) ([\w\-]+)\(", line)
            if found:
                current.append((found[2], re.sub(r"\{[^}]*\}", "", found[1]), line))
    return computations


def loop_body(computations):
    """The name of the largest loop body: the step."""
    bodies = [
        re.search(r"body=%?([\w.\-]+)", line)[1]
        for rows in computations.values()
        for opcode, _, line in rows
        if opcode == "while"
    ]
    return max(bodies, key=lambda name: len(computations[name]))


def cache_copies(text, shape):
    """Bytes of `copy` instructions of this shape: in the step, and in its conditional branches."""
    computations = instructions(text)
    body = computations[loop_body(computations)]
    wanted = f"f32[{','.join(map(str, shape))}]"
    size = 4 * int(np.prod(shape))
    branches = set()
    for opcode, _, line in body:
        if opcode == "conditional":
            listed = re.search(r"branch_computations=\{([^}]*)\}", line)
            named = re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", line)
            branches |= set(re.findall(r"[\w.\-]+", listed[1])) if listed else set(named)

    def copied(rows):
        return size * sum(op == "copy" and s == wanted for op, s, _ in rows)

    return copied(body), sum(copied(computations[name]) for name in branches)


def large_arrays(text, at_least):
    """The arrays of so many elements that a step makes, counted by opcode and shape."""
    computations = instructions(text)
    views = {"parameter", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call"}
    return Counter(
        (opcode, shape)
        for opcode, shape, _ in computations[loop_body(computations)]
        if opcode not in views and max(_sizes(shape), default=0) >= at_least
    )


def _sizes(shape):
    return [
        int(np.prod([int(x) for x in axes.split(",") if x]))
        for axes in re.findall(r"\w+\[([\d,]*)\]", shape)
    ]


def suffix_shape(lm, n, length):
    """Shape of one layer's suffix keys for all particles."""
    slots = -(-length // 16) * 16
    return n, lm.config.kv_heads, slots, lm.config.head_dim


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=["8x16", "8x32", "32x16", "32x32"])
    parser.add_argument("--random", help="VxdxLAYERS: a decoder with random weights, not SmolLM2")
    parser.add_argument("--prompt", type=int, default=60, help="tokens of the prompt")
    parser.add_argument("--pairs", type=int, default=0, help="timed pairs of runs; 0 is none")
    options = parser.parse_args()
    cache_compilations()
    if options.random:
        vocabulary, d, layers = map(int, options.random.split("x"))
        lm = random_llama(
            jax.random.key(1),
            vocabulary,
            layers,
            d,
            heads=max(2, d // 64),
            kv_heads=2,
            context=1024,
        )
    else:
        lm = models.load("smollm2-135m-instruct")
    prefix = lm.prompt([20 + i for i in range(options.prompt)])
    print(
        f"{options.random or 'SmolLM2-135M'}, prompt {options.prompt}, jax {jax.__version__}, "
        f"{jax.devices()[0].device_kind}. Ratios are feynkac / by hand.\n"
    )
    head = ["N x T", "flops", "bytes", "GB a step", "cache copies, MB: step", "resampling branch"]
    head += ["temp memory, MB", "time [95 %]", "ms a step", "others"] if options.pairs else []
    print("| " + " | ".join(head) + " |\n|---" + "|---:" * (len(head) - 1) + "|", flush=True)
    for name in options.cases:
        n, length = map(int, name.split("x"))
        case = Case(lm, prefix, n, length)
        row = [name]
        for count in ("flops", "bytes accessed"):
            ours, hand = case.cost(count)
            row.append(f"{ours / hand:.4f}")
        row.append(f"{ours / 1e9:.3f}")
        both = [case.ours, case.hand]
        copies = [cache_copies(p.as_text(), suffix_shape(lm, n, length)) for p in both]
        row += [" / ".join(f"{c[i] / 1e6:.1f}" for c in copies) for i in (0, 1)]
        if options.pairs:
            temp = [p.memory_analysis().temp_size_in_bytes / 1e6 for p in both]
            row.append(" / ".join(f"{x:.1f}" for x in temp))
            row += timed(case, options.pairs)
        print("| " + " | ".join(row) + " |", flush=True)


def timed(case, pairs):
    """Ratio of times and milliseconds a step.

    Runs stop when every text has ended, so each time is divided by its own number of steps.
    """
    keys = list(jax.random.split(jax.random.key(2), pairs + 2))
    calls = {"ours": case.run_ours, "hand": case.run_hand}
    with timing.Others() as others:
        times = timing.paired(calls, pairs, keys, 2, lambda run: max(1, int(run.lengths.max())))
    ms = " / ".join(f"{1e3 * np.median(times[k]):.2f}" for k in ("ours", "hand"))
    return [timing.interval(times["ours"], times["hand"]), ms, f"{others.share:.0%}"]


if __name__ == "__main__":
    main()
