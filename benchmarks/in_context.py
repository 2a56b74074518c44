"""In-context learning as Bayes: sequence networks trained on tasks, beside the exact predictor.

    python benchmarks/in_context.py                     # all parts; about 15 CPU-minutes
    python benchmarks/in_context.py --parts coins --steps 300

The excess is the paired difference of negative log scores to the Bayes-optimal predictor, nats a
response, with its 95% interval over data sets: an unbiased estimate of the expected KL divergence.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from feynkac.models.amortized import network, train
from feynkac.models.amortized.causal import CausalTransformer
from feynkac.models.amortized.icl import Bernoulli, Gaussian, InContext, Loss, compare, strategy
from feynkac.models.amortized.icl_tasks import Task, pool
from feynkac.models.amortized.locality import (
    LocalChain,
    LocalLoss,
    conditionals,
    estimate,
    scaffolded,
)
from feynkac.models.amortized.pairs import in_context
from feynkac.models.amortized.priors import Bandit, LinearRegression, coin
from feynkac.models.amortized.state_space import Diagonal, Selective, StateSpaceNet
from feynkac.models.finite.changepoint import NormalRun, RobustNormalRun, run_lengths

TEST = jax.random.key(20_001)
LENGTH = 16


def nets(task, head, width):
    inputs = 2 * task.sample(TEST)[0].shape[1] + 2
    made = {
        "selective (Mamba)": StateSpaceNet(
            inputs, head.width, width, 2, 8, Selective, rngs=nnx.Rngs(0)
        ),
        "diagonal (S4D)": StateSpaceNet(
            inputs, head.width, width, 2, 8, Diagonal, rngs=nnx.Rngs(0)
        ),
        "transformer": CausalTransformer(
            inputs, head.width, task.length, width, 2, 4, rngs=nnx.Rngs(0)
        ),
    }
    return {name: InContext(network(net), head) for name, net in made.items()}


def fitted(start, task, steps, rate=3e-3):
    wall, cpu = time.perf_counter(), time.process_time()
    fit = train(jax.random.key(1), start, Loss(task, 64), steps, learning_rate=rate, progress=False)
    return fit.params, time.perf_counter() - wall, time.process_time() - cpu


def size(net):
    return sum(x.size for x in jax.tree.leaves(net) if hasattr(x, "size"))


def row(name, net, result, cpu):
    e = result.excess
    late = result.by_position[-4:].mean()
    print(
        f"  {name:20s} {size(net):8d} {cpu:8.0f} {e.mean:9.4f} [{e.low:.4f}, {e.high:.4f}] "
        f"{result.by_position[0]:8.4f} {late:8.4f} {result.distance:8.3f}",
        flush=True,
    )


def head_line(title, exact):
    print(f"\n{title}; exact: {exact.mean():.4f} nats a response")
    print(
        f"  {'network':20s} {'numbers':>8s} {'CPU-s':>8s} {'excess':>9s} {'95% interval':>17s} "
        f"{'first':>8s} {'last 4':>8s} {'distance':>8s}"
    )


def family(title, task, head, steps, width):
    reference = compare(TEST, task, task, 2000)
    head_line(title, reference.exact)
    kept = {}
    for name, start in nets(task, head, width).items():
        net, _, cpu = fitted(start, task, steps)
        row(name, net, compare(TEST, net, task, 2000), cpu)
        kept[name] = net
    return kept


def coins(steps, width):
    kept = family("coin, Beta(1, 1)", Task(coin(), LENGTH), Bernoulli(), steps, width)
    print("  pair prediction after 10 flips: posterior deviation of p, exact and by the networks")
    x = jnp.ones((10, 1))
    for wins in (1, 5):
        y = jnp.asarray(np.arange(10) < wins, jnp.int32)
        a, b = 1 + wins, 11 - wins
        exact = np.sqrt(a * b / ((a + b) ** 2 * (a + b + 1)))
        said = [f"{n} {in_context(k, x, y, jnp.ones(1)).deviation[1]:.3f}" for n, k in kept.items()]
        print(f"    {wins} of 10: exact {exact:.3f}; " + ", ".join(said))


def bandit(steps, width):
    family("bandit of 3 arms, pulled at random", Task(Bandit(3), LENGTH), Bernoulli(), steps, width)


def linear(steps, width):
    task = Task(LinearRegression(2), LENGTH)
    family("linear regression, d = 2, noise 0.5: ridge", task, Gaussian(), steps, width)


def memory(steps, width):
    """The same network trained on pools of few and many tasks: share of memorizing, new tasks."""
    new = Task(LinearRegression(2), LENGTH)
    print("\nmemorizing (share 1) against generalizing (0), transformer, on tasks never seen")
    print("  pool    share  error   excess on its tasks   excess on new tasks (to ridge)")
    for count in (2, 8, 64, 1024):
        task = Task(pool(jax.random.key(7), count, 2), LENGTH)
        net, _, _ = fitted(nets(task, Gaussian(), width)["transformer"], task, steps)
        found = strategy(TEST, net, task, new, new, 2000)
        own, other = compare(TEST, net, task, 2000), compare(TEST, net, new, 2000)
        print(
            f"  {count:5d} {found.share:7.2f} {found.error:6.2f} {own.excess.mean:14.4f} "
            f"{other.excess.mean:20.4f}",
            flush=True,
        )


def locality(steps, width):
    key_tables, key_net = jax.random.split(jax.random.key(11))
    tables = jax.random.dirichlet(key_tables, jnp.full(3, 0.5), (5, 3))
    chain = LocalChain(jnp.full(3, 1 / 3), tables)
    start = conditionals(key_net, chain, 64)
    fit = train(key_net, start, LocalLoss(chain, 256), steps, learning_rate=1e-2, progress=False)
    print("\na chain of 6 variables seen in pairs: mean squared error of p(later | first)")
    print("  distance   direct   stepwise   direct in theory (reasoning gap)")
    for query in range(1, chain.length):
        exact, weight = chain.conditional(0, query), chain.marginals()[0][:, None]
        errors = [
            float(jnp.sum(weight * (f(fit.params, chain, 0, query) - exact) ** 2) / 3)
            for f in (estimate, scaffolded)
        ]
        print(f"  {query:8d} {errors[0]:8.4f} {errors[1]:10.4f} {chain.gap(0, query):10.4f}")


def changepoints(steps, width):
    """Runs of N(level, 1) with outliers: false alarms and missed changes, exact and robust."""
    generator = np.random.default_rng(3)
    plain, robust = NormalRun(0.0, 0.1, 1.0, 1.0), RobustNormalRun()
    hits, false = np.zeros(2), np.zeros(2)
    filters = [
        jax.jit(lambda xs, m=m: run_lengths(xs, 0.01, m).started(6)) for m in (plain, robust)
    ]
    sets = 40
    for _ in range(sets):
        xs = generator.normal(size=120)
        xs[70:] += 5
        outliers = generator.choice(np.r_[10:60, 80:110], 4, replace=False)
        xs[outliers] += generator.choice([-10, 10], 4)
        for i, f in enumerate(filters):
            started = np.asarray(f(jnp.asarray(xs, float)))
            alarms = np.flatnonzero(started[1:] > 0.5) + 1
            near = np.abs(alarms - 70) <= 2
            hits[i] += near.any()
            false[i] += (~near).sum()
    print(f"\nchangepoints with 4 outliers in 120 data, {sets} series")
    for i, name in enumerate(("exact Bayes", "robust (score matching)")):
        print(f"  {name:24s} change found {hits[i] / sets:.2f}, false alarms {false[i] / sets:.2f}")


PARTS = {f.__name__: f for f in (coins, bandit, linear, memory, locality, changepoints)}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--width", type=int, default=32)
    given = parser.parse_args()
    for part in given.parts:
        PARTS[part](given.steps, given.width)
