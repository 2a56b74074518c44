"""Resampling against BlackJAX: zero-weight particles selected, and time per call.

    python benchmarks/resampling.py [--runs 200000]

Both start from log-weights, in float32. Ours is timed with its guards (dead and NaN populations).
"""

import argparse
import time

import blackjax.smc.resampling as peer
import jax
import jax.numpy as jnp
import numpy as np

from feynkac.inference.resampling import (
    SSP,
    Killing,
    Multinomial,
    Residual,
    Stratified,
    Systematic,
)


def from_peer(resample):
    return lambda key, table: resample(key, jax.nn.softmax(table), table.shape[0])


OURS = {
    # A bound method of a module that holds an array cannot be hashed, which jit wants.
    type(r).__name__: lambda key, table, r=r: r.ancestors(key, table)
    for r in (Multinomial(), Stratified(), Systematic(), Residual(), SSP(), Killing())
}
PEER = {
    "Multinomial": from_peer(peer.multinomial),
    "Stratified": from_peer(peer.stratified),
    "Systematic": from_peer(peer.systematic),
    "Residual": from_peer(peer.residual),
}


def zero_weight_selections(resample, runs, n=1024, part=20_000, label=""):
    """Selections of a zero-weight particle, and runs that have one; the last half weighs zero."""

    @jax.jit
    def count(keys):
        def one(key):
            key, fresh = jax.random.split(key)
            table = jnp.where(jnp.arange(n) < n // 2, jax.random.normal(fresh, (n,)), -jnp.inf)
            return jnp.sum(table[resample(key, table)] == -jnp.inf)

        return jax.lax.map(one, keys, batch_size=100)

    keys = jax.random.split(jax.random.key(0), runs)
    selected = np.array([], int)
    for start in range(0, runs, part):
        selected = np.append(selected, np.asarray(count(keys[start : start + part])))
        print(f"  {label}: {len(selected):,} runs, {selected.sum()} selected", flush=True)
    return int(selected.sum()), int((selected > 0).sum())


def microseconds(entries, n, batch=None, rounds=30):
    """Fastest call of each entry; the entries take turns, so that all meet the same load."""
    shape = (n,) if batch is None else (batch, n)
    table = jax.random.normal(jax.random.key(1), shape)
    key = jax.random.key(2) if batch is None else jax.random.split(jax.random.key(2), batch)
    calls = [jax.jit(f if batch is None else jax.vmap(f)) for _, f in entries]
    times = np.full((rounds + 1, len(calls)), np.inf)
    for r in range(rounds + 1):  # the first compiles
        for i, call in enumerate(calls):
            start = time.perf_counter()
            jax.block_until_ready(call(key, table))
            times[r, i] = time.perf_counter() - start
    print(f"  N={n}, batch {batch}: timed", flush=True)
    return 1e6 * times[1:].min(0)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200_000)
    runs = parser.parse_args().runs
    entries = [(f"feynkac {k}", f) for k, f in OURS.items()]
    entries += [(f"BlackJAX {k}", f) for k, f in PEER.items()]
    sizes = [(64, None), (1024, None), (16384, None), (64, 64), (1024, 64)]
    head = [f"N={n}" + (f" x{b} vmap" if b else "") for n, b in sizes]
    times = np.stack([microseconds(entries, n, b) for n, b in sizes], 1)
    rows = []
    for (label, resample), fastest in zip(entries, times, strict=True):
        selected, bad = zero_weight_selections(resample, runs, label=label)
        rows.append([label, *(f"{t:,.0f}" for t in fastest), f"{selected:,} in {bad} runs"])
    print(f"\nMicroseconds a call, fastest of 30 by turns, {jax.devices()[0].device_kind};")
    print(f"zero-weight particles selected in {runs:,} runs at N = 1,024, half the weights zero.\n")
    print("| resampler | " + " | ".join(head) + " | zero-weight selections |")
    print("|---|" + "---:|" * (len(sizes) + 1))
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
