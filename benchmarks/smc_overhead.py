"""What a step of the particle filter costs when the model is free.

    python benchmarks/smc_overhead.py [--runs 20] [--peer PYTHON]

The model is a fixed table of logits (no network, no state but the last token), under a soft
constraint that makes the filter resample; the time is all key handling, drawing, weighing,
resampling and storing. Beside it the same filter by hand (`handwritten.fixed_table`). A peer runs
in an environment of its own (`--peer`, see README.md): a categorical step as BlackJAX or cuthbert
would have it.
"""

import argparse
import json
import subprocess
from pathlib import Path

import handwritten
import jax
import jax.numpy as jnp
import numpy as np
import timing

from feynkac import inference, ppl
from feynkac.inference.smc import _run
from feynkac.ppl.target import as_target

CASES = [(8, 257), (64, 257), (512, 257), (64, 32000)]


def table(vocabulary):
    """Logits of the model and the log potential of each token."""
    logits = 2.0 * jax.random.normal(jax.random.key(1), (vocabulary,))
    return logits, jnp.where(jnp.arange(vocabulary) % 4 == 0, 0.0, -2.0)


def model(logits, bonus, length):
    """The table as a StateSpace; two log potentials, chosen by token."""

    def init(ctx, logits, bonus):
        return jnp.zeros((), jnp.int32)

    def step(ctx, last, t, logits, bonus):
        token = ctx.sample("token", ppl.Token(logits))
        ctx.factor("constraint", bonus[token])
        return token

    return ppl.bind(ppl.StateSpace(init, step, length), logits, bonus)


def lanes(n, vocabulary, length):
    """The two programs, compiled: name -> call(seed)."""
    logits, bonus = table(vocabulary)
    smc, story = inference.SMC(n), model(logits, bonus, length)
    lowered = _run.lower(smc, jax.random.key(0), as_target(story), None)
    # The compiled calls, so that what is timed is the run and not the call's own bookkeeping.
    ours = lowered.compile()
    hand = handwritten.fixed_table.lower(jax.random.key(0), logits, bonus, n, length).compile()
    return {
        "feynkac": lambda key: ours(smc, key, as_target(story), None),
        "by hand": lambda key: hand(key, logits, bonus, jnp.asarray(0.5)),
        "feynkac, smc.run": lambda key: smc.run(key, story),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--length", type=int, default=100)
    parser.add_argument("--peer", help="a Python with the peer installed")
    options = parser.parse_args()
    print(f"Milliseconds a step, median of {options.runs} runs of {options.length} steps;")
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}.\n")


if __name__ == "__main__":
    main()
