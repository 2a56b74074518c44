"""What a step of the particle filter costs when the model is free.

    python benchmarks/smc_overhead.py [--runs 30] [--peer PYTHON]

The model is a fixed table of logits over V tokens (no network, no state but the last token) with a
soft constraint that makes the filter resample: what is timed is keys, draws, weights, resampling
and storing. Beside it the same filter by hand (`handwritten.fixed_table`) and, with `--peer`, a
bootstrap filter of cuthbert's in an environment of its own (see README.md): the same model and
resampling threshold, the token drawn by `jax.random.categorical` or as by hand, and all its states
and ancestors stored.
"""

import argparse
import json
import subprocess
import sys

import handwritten
import jax
import jax.numpy as jnp
import numpy as np
import timing

CASES = ["8x257", "64x257", "512x257", "64x32000"]


def table(vocabulary):
    """Logits of the model and the log potential of each token."""
    logits = 2.0 * jax.random.normal(jax.random.key(1), (vocabulary,))
    return logits, jnp.where(jnp.arange(vocabulary) % 4 == 0, 0.0, -2.0)


def model(logits, bonus, length):
    """The table as a StateSpace."""
    from feynkac import ppl

    def init(ctx, logits, bonus):
        return jnp.zeros((), jnp.int32)

    def step(ctx, last, t, logits, bonus):
        token = ctx.sample("token", ppl.Token(logits))
        ctx.factor("constraint", bonus[token])
        return token

    return ppl.bind(ppl.StateSpace(init, step, length), logits, bonus)


def peer(n, vocabulary, length, runs, draw):
    """In the peer's environment: milliseconds a step and the mean log evidence."""
    from cuthbert import filter as run_filter
    from cuthbert.smc import particle_filter
    from cuthbertlib.resampling import adaptive, systematic

    logits, bonus = table(vocabulary)
    bootstrap = particle_filter.build_filter(
        init_sample=lambda key: jnp.zeros((), jnp.int32),
        propagate_sample=lambda key, state, inputs: draw(key, logits),
        log_potential=lambda before, state, inputs: bonus[state],
        n_filter_particles=n,
        resampling_fn=adaptive.ess_decorator(systematic.resampling, 0.5),
    )

    @jax.jit
    def call(key):
        before, during = jax.random.split(key)
        start = bootstrap.init_prepare(key=before)
        return run_filter(bootstrap, jnp.zeros(length), start, key=during)

    jax.block_until_ready(call(jax.random.key(0)))
    times, evidence = [], []
    for i in range(runs):
        times.append(timing.seconds(lambda i=i: call(jax.random.key(i))))
        evidence.append(float(call(jax.random.key(i)).log_normalizing_constant[-1]))
    return 1e3 * float(np.median(times)) / length, float(np.mean(evidence))


def measured(n, vocabulary, length, runs):
    """Seconds [runs] of ours and of the filter by hand, in turn, and their mean log evidences."""
    from feynkac import inference

    logits, bonus = table(vocabulary)
    smc, story = inference.SMC(n), model(logits, bonus, length)
    keys = jax.random.split(jax.random.key(0), runs + 3)
    calls = {
        "feynkac": lambda key: smc.run(key, story),
        "by hand": lambda key: handwritten.fixed_table(key, logits, bonus, n, length),
    }
    return timing.paired(calls, runs, list(keys)), {
        name: float(np.mean([call(key).log_evidence for key in keys]))
        for name, call in calls.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--length", type=int, default=100)
    parser.add_argument("--cases", nargs="+", default=CASES, help="particles x vocabulary")
    parser.add_argument("--peer", help="a Python with cuthbert (README.md)")
    parser.add_argument("--role", help=argparse.SUPPRESS)
    options = parser.parse_args()
    length, runs = options.length, options.runs
    if options.role:
        n, vocabulary = map(int, options.role.split("x"))
        draws = (jax.random.categorical, lambda key, logits: handwritten.draw(key, logits)[0])
        print(json.dumps([peer(n, vocabulary, length, runs, draw) for draw in draws]))
        return
    print(f"Milliseconds a step: medians of {runs} runs of {length} steps, compilation apart;")
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}.\n")
    head = ["N x V", "feynkac", "by hand", "feynkac / by hand [95 %]"]
    head += ["cuthbert, categorical", "cuthbert, our draw"]
    print("| " + " | ".join([*head, "log evidence"]) + " |\n|---" + "|---:" * len(head) + "|")
    for case in options.cases:
        n, vocabulary = map(int, case.split("x"))
        times, evidence = measured(n, vocabulary, length, runs)
        ms = {name: 1e3 * np.median(t) / length for name, t in times.items()}
        row = [case, f"{ms['feynkac']:.3f}", f"{ms['by hand']:.3f}"]
        row.append(timing.interval(times["feynkac"], times["by hand"]))
        levels = list(evidence.values())
        if options.peer:
            command = [options.peer, __file__, "--role", case]
            command += ["--runs", str(runs), "--length", str(length)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            for spent, level in json.loads(done.stdout.splitlines()[-1]):
                row.append(f"{spent:.3f}")
                levels.append(level)
        else:
            row += ["not run"] * 2
        row.append(" / ".join(f"{x:.2f}" for x in levels))
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
