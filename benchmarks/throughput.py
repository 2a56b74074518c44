"""Tokens a second of SmolLM2-135M by number of particles, beside the loop by hand and torch.

    python benchmarks/throughput.py --memory
    python benchmarks/throughput.py [--torch-python PYTHON] [--particles 1 8 32 128] [--runs 5]

Prompt of 64 tokens, 32 new ones; compilation, prefill and (for torch) the prompt's forward pass
apart. Lanes, taken in turn run by run: plain generation with `inference.Importance`, the same by
hand, the demo's steered SMC, the same by hand. Then `transformers` on torch (float32, the prompt
replicated in a `DynamicCache`, multinomial draws) in a process of its own. A number of tokens is
of those computed: particles x steps taken. The roofline is the decoder's own matrix products, one
after the other with as many rows as particles and nothing else, in the same process.

`--memory`: what a particle costs beside a long shared prompt, from XLA's account of the compiled
program (`memory_analysis`) and from the arrays themselves.
"""

import argparse
import json
import subprocess
import sys
import time

import numpy as np

PROMPT, LENGTH = 64, 32
LANES = ["feynkac", "by hand", "feynkac SMC", "SMC by hand"]


def torch_lane(gguf, particles, runs):
    """Run in the other environment: tokens/s of each run for each number of particles."""
    from pathlib import Path

    import torch
    from transformers import AutoModelForCausalLM, DynamicCache, GgufConfig

    path = Path(gguf)
    model = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.eval()

    def run(n):
        ids = torch.arange(20, 20 + PROMPT)[None].repeat(n, 1)
        cache = DynamicCache()
        logits = model(ids, past_key_values=cache, logits_to_keep=1).logits[:, -1]
        start = time.perf_counter()
        for _ in range(LENGTH):
            tokens = torch.multinomial(torch.softmax(logits, -1), 1)
            logits = model(tokens, past_key_values=cache).logits[:, -1]
        return n * LENGTH / (time.perf_counter() - start)

    with torch.no_grad():
        run(2)
        rates = {n: [run(n) for _ in range(runs)] for n in particles}
    print(json.dumps({"torch": torch.__version__, "rates": rates}))


def programs(lm, prefix, n):
    """Name -> call(key), each returning the texts' lengths first."""
    import dsl_cost
    import handwritten
    import jax.numpy as jnp

    from feynkac import inference, models, ppl
    from feynkac.cli.story import steered

    # Nothing is conditioned on the end of text, so that all lanes take all steps or nearly.
    allowed, reward = dsl_cost.tables(lm.vocab_size)
    allowed = allowed.at[lm.eos].set(0.0)
    warmth = jnp.asarray(dsl_cost.TEMPERATURE)
    plain = models.generation(lm, prefix, LENGTH, dsl_cost.TEMPERATURE)
    story, smc = steered(lm, prefix, LENGTH, dsl_cost.TEMPERATURE, allowed, reward, ppl.Keep())
    smc, importance = inference.SMC(n, proposal=smc.proposal), inference.Importance(n)

    def by_hand(key):
        return handwritten.steered(key, lm, prefix, warmth, allowed, reward, n, LENGTH)

    return {
        "feynkac": lambda key: importance.run(key, plain).lengths,
        "by hand": lambda key: handwritten.sampled(key, lm, prefix, warmth, n, LENGTH)[1],
        "feynkac SMC": lambda key: smc.run(key, story).lengths,
        "SMC by hand": lambda key: by_hand(key).lengths,
    }


def speed(lm, options):
    """The table of tokens a second."""
    import jax
    import timing

    prefix = lm.prompt(list(range(20, 20 + PROMPT)))
    print(f"SmolLM2-135M, float32, prompt {PROMPT}, {LENGTH} new tokens; {platform()}.")
    print(f"Tokens/s, medians of {options.runs} interleaved runs; compilation apart.\n")
    head = ["particles", *LANES, "SMC / SMC by hand [95 %]", "matrix products alone"]
    head += ["feynkac, of these", "GFLOP/s there", "first call, s", "others"]
    print("| " + " | ".join(head) + " |\n|" + "---:|" * len(head), flush=True)
    ours = {}
    for n in options.particles:
        calls = programs(lm, prefix, n)
        keys = list(jax.random.split(jax.random.key(n), options.runs + 1))
        start = time.perf_counter()
        for lane in ("feynkac", "feynkac SMC"):
            jax.block_until_ready(calls[lane](keys[0]))
        first = (time.perf_counter() - start) / 2
        with timing.Others() as others:
            times = timing.paired(
                calls,
                options.runs,
                keys,
                1,
                lambda lengths: max(1, int(lengths.max())) * lengths.size,
            )
            roof = timing.decoder_rate(lm, n)
        rates = {lane: 1.0 / np.median(t) for lane, t in times.items()}
        ours[n] = rates["feynkac"]
        row = [str(n), *(f"{rates[lane]:.0f}" for lane in LANES)]
        row.append(timing.interval(times["feynkac SMC"], times["SMC by hand"]))
        row += [f"{roof:.0f}", f"{rates['feynkac'] / roof:.0%}"]
        row += [f"{1e-9 * roof * timing.flops_per_token(lm):.0f}", f"{first:.1f}"]
        row.append(f"{others.share:.0%}")
        print("| " + " | ".join(row) + " |", flush=True)
    print(f"\nOne product 2048 x 2048 x 2048: {timing.matmul_rate(2048, 2048, 2048):.0f} GFLOP/s.")
    if options.torch_python:
        compare_torch(options, ours)


def compare_torch(options, ours):
    """The torch lane, after ours: the processes would share the processors."""
    from feynkac.models.language.fetch import fetch_smollm2

    role = ["--role", str(fetch_smollm2()), "--runs", str(options.runs), "--particles"]
    command = [options.torch_python, __file__, *role, *map(str, options.particles)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    print(f"\ntransformers on torch {answer['torch']}, float32, a process after ours.\n")
    print("| particles | torch, tokens/s | feynkac / torch |\n|---:|---:|---:|")
    for n in options.particles:
        theirs = float(np.median(answer["rates"][str(n)]))
        print(f"| {n} | {theirs:.0f} | {ours[n] / theirs:.2f} |")


def memory(lm, options):
    """The prompt is stored once: bytes by number of particles, and growth a particle."""
    import dsl_cost
    import jax
    import jax.numpy as jnp

    from feynkac import inference, models

    def size(tree):
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))

    prefix = lm.prompt([20 + i % 400 for i in range(options.prompt)])
    state = jax.eval_shape(lambda: lm.start(prefix, LENGTH))
    suffix, logits = size(state.cache), size(state.logits)
    mb = 1e-6
    print(f"\nMemory: prompt of {options.prompt} tokens, {LENGTH} new ones; {platform()}.\n")
    print(f"- prompt cache, once: {mb * size(prefix.cache):.2f} MB")
    print(
        f"- a particle's suffix cache: {mb * suffix:.2f} MB, and its logits {mb * logits:.2f} MB\n"
    )
    weight = size(lm)
    story = models.generation(lm, prefix, LENGTH)
    allowed, reward = dsl_cost.tables(lm.vocab_size)
    print("| particles | weights, MB | other arguments, MB | temporary, MB | a particle more, MB |")
    print("|---:|---:|---:|---:|---:|", flush=True)
    before = None
    for n in options.memory_particles:
        case = dsl_cost.Case(lm, prefix, n, LENGTH)
        account = case.ours.memory_analysis()
        temporary = account.temp_size_in_bytes
        arguments = account.argument_size_in_bytes - weight
        growth = "" if before is None else (temporary - before[1]) / (n - before[0])
        cell = (
            growth and f"{mb * growth:.2f} = {growth / (suffix + logits):.2f} x (suffix + logits)"
        )
        print(f"| {n} | {mb * weight:.1f} | {mb * arguments:.1f} | {mb * temporary:.1f} | {cell} |")
        before = n, temporary
    live = sum(x.nbytes for x in jax.live_arrays())
    smc = inference.SMC(options.memory_particles[0])
    particles = jax.block_until_ready(smc.run(jax.random.key(0), story))
    del case
    after = sum(x.nbytes for x in jax.live_arrays())
    print(f"\nArrays alive: {mb * live:.1f} MB before a run of {smc.n_particles} particles and ")
    print(f"{mb * after:.1f} MB after it: a result holds {1e-3 * size(particles):.1f} kB.")
    assert jnp.isfinite(particles.log_evidence)


def platform():
    """Where this was measured."""
    import os

    import jax

    return f"{jax.devices()[0].device_kind} x{os.cpu_count()}, jax {jax.__version__}"


def main():
    """Print the tables, or play torch's part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--particles", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--torch-python", help="a Python with torch and transformers (README.md)")
    parser.add_argument("--memory", action="store_true", help="the memory table instead")
    parser.add_argument("--prompt", type=int, default=512, help="of the memory table")
    parser.add_argument("--memory-particles", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--role", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        torch_lane(options.role, options.particles, options.runs)
        return
    from feynkac import models
    from feynkac.cli.setup import cache_compilations

    cache_compilations()
    lm = models.load("smollm2-135m-instruct")
    if options.memory:
        memory(lm, options)
    else:
        speed(lm, options)


if __name__ == "__main__":
    sys.exit(main())
