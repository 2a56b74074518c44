"""Paired, interleaved, blocked timing: medians, ratios with intervals, the machine's roofline."""

import os
import time

import jax
import jax.numpy as jnp
import numpy as np


def seconds(call):
    """Wall-clock time of one call, until its result is there."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def paired(calls, pairs, keys, warm=3, work=None):
    """Seconds [pairs] of each named call of a key: in turn, the order drawn anew every round.

    `keys` are `warm + pairs` keys, each given to every call. `work(result)`, if given, is the
    amount of work of a run, by which its time is divided.
    """
    rng = np.random.default_rng(0)
    times = {name: [] for name in calls}
    for i, key in enumerate(keys[: warm + pairs]):
        for name in rng.permutation(list(calls)):
            start = time.perf_counter()
            result = jax.block_until_ready(calls[name](key))
            spent = time.perf_counter() - start
            if i >= warm:
                times[name].append(spent if work is None else spent / work(result))
    return {name: np.array(t) for name, t in times.items()}


def ratio(ours, theirs):
    """Median of the paired ratios, and its 95 % interval from order statistics (no law assumed)."""
    r = np.sort(np.asarray(ours) / np.asarray(theirs))
    n = len(r)
    reach = 0.98 * np.sqrt(n)
    low, high = int(np.floor(n / 2 - reach)), int(np.ceil(n / 2 + reach))
    return float(np.median(r)), float(r[max(low, 0)]), float(r[min(high, n - 1)])


def interval(ours, theirs):
    """The ratio as text."""
    middle, low, high = ratio(ours, theirs)
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"


def matmul_rate(rows, inner, columns, repeats=10):
    """GFLOP/s of a float32 product of this shape: the best of `repeats` calls."""
    a, b = jnp.ones((rows, inner)), jnp.ones((columns, inner))
    product = jax.jit(lambda a, b: a @ b.T)
    jax.block_until_ready(product(a, b))
    best = min(seconds(lambda: product(a, b)) for _ in range(repeats))
    return 2e-9 * rows * inner * columns / best


def flops_per_token(lm):
    """Multiply-adds x 2 of the matrix products of one token, attention left out."""
    head = lm.embedding if lm.head is None else lm.head
    matrices = [x for layer in lm.layers for x in jax.tree.leaves(layer) if x.ndim == 2]
    return 2.0 * (head.size + sum(x.size for x in matrices))


def decoder_rate(lm, rows, repeats=10):
    """Tokens/s that the decoder's matrix products alone allow with `rows` tokens at a time.

    All of them, each in its own shape, are run one after the other in one compiled call: the
    roofline of the machine for this model, which also counts reading the weights.
    """
    head = lm.embedding if lm.head is None else lm.head
    matrices = [x for layer in lm.layers for x in jax.tree.leaves(layer) if x.ndim == 2] + [head]

    @jax.jit
    def products(xs, matrices):
        return [jnp.sum(xs[m.shape[1]] @ m.T) for m in matrices]

    xs = {m.shape[1]: jnp.ones((rows, m.shape[1])) for m in matrices}
    jax.block_until_ready(products(xs, matrices))
    return rows / min(seconds(lambda: products(xs, matrices)) for _ in range(repeats))


class Others:
    """Share of the machine's processor time that other processes took within the `with` block."""

    def __enter__(self):
        self.before = _cpu()
        return self

    def __exit__(self, *error):
        busy, own, total = (b - a for a, b in zip(self.before, _cpu(), strict=True))
        self.share = max(0.0, busy - own) / total if total else float("nan")


def _cpu():
    times = os.times()
    try:
        with open("/proc/stat") as file:
            ticks = [int(x) for x in file.readline().split()[1:9]]
    except OSError:
        return float("nan"), times.user + times.system, float("nan")
    hertz = os.sysconf("SC_CLK_TCK")
    idle = ticks[3] + ticks[4]
    return (sum(ticks) - idle) / hertz, times.user + times.system, sum(ticks) / hertz
