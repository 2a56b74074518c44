"""How far is a prior-data fitted network from the exact answer, and when does it pay?

Each part trains a network on a prior program (or goes on from --checkpoint) and compares it on data
sets of other seeds, paired, with intervals over data sets. Processor seconds are those of this
process; compilation is apart.

    python benchmarks/pfn.py --part fixed                        # a Gaussian process: gap to exact
    python benchmarks/pfn.py --part hyper --sets 300             # hyperpriors: MLE-II, NUTS
    python benchmarks/pfn.py --part tabular                      # scikit-learn's tables
    python benchmarks/pfn.py --part fixed --steps 36000 --checkpoint folder --save file.safetensors
"""

import argparse
import functools
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from pfn_hyper import hyper_ways
from scipy.stats import gamma
from timing import seconds

from feynkac.models import amortized
from feynkac.models.amortized import priors

SMALL = {"fixed": 5000, "hyper": 5000, "tabular": 5000}
"""Steps of about 0.1 processor seconds each."""


def trained(program, context, head, options, draws=None, scores=None):
    """A PFN after training, and a line on what that cost (over all sessions of a checkpoint)."""
    pfn = amortized.PFN(
        program,
        context=context,
        head=head,
        scores=scores,
        key=jax.random.key(0),
        width=options.width,
        layers=options.layers,
        draws=draws or options.draws,
    )
    record = Path(options.checkpoint) / "cost.json" if options.checkpoint else None
    before = json.loads(record.read_text()) if record and record.exists() else {}
    compile_cpu, start = before.get("compile", 0.0), {}

    def note(report):
        if not start:  # the first chunk has the compilation in it
            start.update(cpu=time.process_time(), wall=time.perf_counter(), step=report.step)
            return
        spent = {
            "train": before.get("train", 0.0) + time.process_time() - start["cpu"],
            "wall": before.get("wall", 0.0) + time.perf_counter() - start["wall"],
            "steps": before.get("steps", 0) + report.step - start["step"],
            "compile": compile_cpu,
        }
        if record:
            record.parent.mkdir(parents=True, exist_ok=True)
            record.write_text(json.dumps(spent))
        trained.spent = spent
        print(f"step {report.step}  loss {-report.value:.4f}  {spent['train']:.0f} s", flush=True)

    trained.spent = before
    net, fit = pfn.train(
        jax.random.key(1),
        options.steps,
        batch=options.batch,
        learning_rate=options.lr,
        every=100,
        checkpoint=options.checkpoint,
        progress=False,
        callback=note,
    )
    fit.status.throw()
    spent = trained.spent
    if spent:
        each = spent["train"] / max(spent["steps"], 1)
        print(
            f"\ntrained: {options.steps} steps of {options.batch} data sets, "
            f"{each * options.steps:.0f} processor s ({1e3 * each:.0f} ms a step)"
        )
    if options.save:
        net.save(options.save)
    return net


def mean_error(d):
    return f"{np.mean(d):.4f} ± {1.96 * np.std(d, ddof=1) / np.sqrt(len(d)):.4f}"


def fixed(options):
    """Row A of the anchors: length scale 0.2, noise variance 0.01, one input, n in 0..20."""
    process = priors.GaussianProcess(lengthscale=0.2, scale=1.0, noise=0.01)
    pfn = trained(process.program(40), 20, amortized.Riemann(1000), options)

    # Apart from `score`: jaxlib 0.10.2 can hang where one computation for a CPU has two independent
    # batched Cholesky decompositions.
    @jax.jit
    def problems(keys):
        choices = jax.vmap(lambda key: process.program(40).simulate(key).choices)(keys)
        return tuple(choices[k][:, s] for s in (slice(20), slice(20, None)) for k in "xy")

    @jax.jit
    def score(pfn, x, y, queries, z, n):
        law = pfn.answer(pfn.net, x, y, n, queries)
        mask = jnp.arange(20)[None] < n[:, None]
        exact = jax.vmap(process.predictive)(x, y, queries, mask)
        floor = amortized.Bars(
            pfn.head.borders,
            amortized.log_masses(exact.loc, exact.scale, pfn.head.borders),
        )
        inside = (law.cdf(z) > 0.025) & (law.cdf(z) < 0.975)
        exact = -exact.log_prob(z)
        return -law.log_prob(z) - exact, -floor.log_prob(z) - exact, law.cdf(z), inside

    parts = []
    n = np.arange(options.sets) % 21
    keys = jax.random.split(jax.random.key(20_000), options.sets)
    for i in range(0, options.sets, 500):
        parts.append(
            jax.device_get(score(pfn, *problems(keys[i : i + 500]), jnp.asarray(n[i : i + 500])))
        )
    gap, floor, pit, inside = (np.concatenate(p) for p in zip(*parts, strict=True))
    print(f"\n{options.sets} data sets, 20 queries each; nats above the exact predictive\n")
    print("| n | gap | of that, bars | largest |\n|---|---|---|---|")
    for low, high in ((0, 20), (0, 0), (1, 5), (6, 12), (13, 20)):
        rows = (n >= low) & (n <= high)
        g, f = gap[rows], floor[rows]
        print(
            f"| {low}..{high} | {mean_error(g.mean(1))} | {mean_error(f.mean(1))} | {g.max():.2f} |"
        )
    u = np.sort(pit[:, 0])  # one query a data set: independent
    ks = np.max(np.abs(u - (np.arange(len(u)) + 0.5) / len(u))) + 0.5 / len(u)
    print(f"\nPIT: Kolmogorov-Smirnov {ks:.4f}, p = {p_value(ks, len(u)):.3f}")
    print(f"coverage of the 95 % interval: {inside.mean():.4f}")


def hyper(options):
    """The PFN paper's hyperpriors, Matern 5/2 in 5 inputs: log scores and times."""
    n, family = options.points, priors.HyperGaussianProcess(dim=5)
    # Quantiles of the length scale's law, in units of x, whose standard deviation is 1 / 12 ** 0.5.
    lengths = gamma(3.0, scale=1 / 6).ppf((np.arange(10) + 0.5) / 10) * (12 / 5) ** 0.5
    kernels = tuple((float(length), 1e-3) for length in lengths)
    scores = amortized.KernelScores(kernels, family.kernel, constant=0.0)
    head, given = amortized.Riemann(1000), scores if options.scores else None
    pfn = trained(family.program(50), 30, head, options, scores=given)

    @jax.jit
    def problems(keys):
        c = jax.vmap(lambda key: family.program(n + 20).simulate(key).choices)(keys)
        return tuple(c[k][:, s] for s in (slice(n), slice(n, None)) for k in "xy")

    keys = jax.random.split(jax.random.key(30_000), options.sets)
    x, y, q, z = problems(keys)
    results, rows, chunk = {}, {}, options.chunk
    for name, way in hyper_ways(pfn, family, scores, n).items():
        many = jax.jit(jax.vmap(way))
        one = jax.jit(way)
        start = time.perf_counter()
        batches = [
            tuple(v[i : i + chunk] for v in (x, y, q, z, keys))
            for i in range(0, options.sets, chunk)
        ]
        compiled = many.lower(*batches[0]).compile()
        single = one.lower(*(v[0] for v in batches[0])).compile()
        compilation = time.perf_counter() - start
        best, runs, began = np.inf, 0, time.perf_counter()
        while runs < options.repeats or time.perf_counter() - began < 5.0:
            start = time.perf_counter()
            out = [jax.block_until_ready(compiled(*b)) for b in batches if len(b[0]) == chunk]
            best, runs = min(best, time.perf_counter() - start), runs + 1
        scores = np.concatenate([np.asarray(o) for o in out])
        first = [v[0] for v in batches[0]]
        alone = min(seconds(functools.partial(single, *first)) for _ in range(50))
        results[name] = scores.mean(1)
        rows[name] = (1e3 * best / len(scores), 1e3 * alone, compilation)
    print(
        f"\n{options.sets} data sets of {n} points, 20 queries; seconds are wall-clock, blocked\n"
    )
    print(
        "| | negative log score | network minus it, paired | ms a set, many | ms, one | compile s |"
    )
    print("|---|---|---|---|---|---|")
    ours = results["network"]
    for name, (many_ms, one_ms, compilation) in rows.items():
        m = min(len(ours), len(results[name]))
        good = np.isfinite(results[name][:m])
        paired = "" if name == "network" else mean_error((results[name][:m] - ours[:m])[good])
        print(
            f"| {name} | {mean_error(-results[name][np.isfinite(results[name])])} | {paired} "
            f"| {many_ms:.3f} | {one_ms:.2f} | {compilation:.1f} |"
        )
    spent = trained.spent
    if spent:
        cost = spent["train"] / max(spent["steps"], 1) * options.steps
        print()
        for name in list(rows)[1:]:
            saved = (rows[name][0] - rows["network"][0]) / 1e3
            after = f"{cost / saved:,.0f} data sets" if saved > 0 else "never"
            ratio = rows[name][0] / rows["network"][0]
            print(f"{name}: {ratio:.1f} times the network's time; training pays after {after}")


def tables():
    """Five binary tasks that scikit-learn ships: name, rows, labels."""
    from sklearn import datasets

    x, y = datasets.load_breast_cancer(return_X_y=True)
    yield "breast_cancer", x, y
    x, y = datasets.load_wine(return_X_y=True)
    yield "wine", x, (y == 1).astype(int)
    x, y = datasets.load_iris(return_X_y=True)
    yield "iris", x[y > 0], (y[y > 0] == 2).astype(int)
    x, y = datasets.load_digits(return_X_y=True)
    rows = (y == 3) | (y == 8)
    yield "digits", x[rows], (y[rows] == 8).astype(int)
    x, y = datasets.load_diabetes(return_X_y=True)
    yield "diabetes", x, (y > np.median(y)).astype(int)


def tabular(options):
    """Row L of the anchors: 100 rows, 30 of them labelled, 20 subsets of each table."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    width = 64
    family = priors.StructuralModel(width, fewest=3, layers=3, units=32)
    scores = amortized.KernelScores() if options.scores else None
    pfn = trained(
        family.program(60), 30, amortized.Labels(2), options, min(options.draws, 1024), scores
    )

    def by_network(x, y, q):
        """Probability of class 1; the columns in three random orders, averaged."""
        rng, all_p = np.random.default_rng(0), []
        for _ in range(3):
            order = rng.permutation(x.shape[1])[:width]
            pad = ((0, 0), (0, width - len(order)))
            scale = (width / len(order)) ** 0.5
            a, b = (np.pad(scale * v[:, order], pad).astype(np.float32) for v in (x, q))
            all_p.append(np.asarray(pfn.condition(a, y.astype(np.int32)).predict(b).probs[:, 1]))
        return np.mean(all_p, axis=0)

    def fitted(model):
        return lambda x, y, q: model.fit(x, y).predict_proba(q)[:, 1]

    ways = {
        "network": by_network,
        "logistic regression": fitted(LogisticRegression(C=1.0, max_iter=2000)),
        "random forest": fitted(RandomForestClassifier(200, random_state=0)),
    }
    print("\nmean AUC / negative log score, nats / calibration error (20 bins)\n")
    print("| | " + " | ".join(ways) + " |\n|" + "---|" * (len(ways) + 1))
    totals = {name: [] for name in ways}
    for task, rows, labels in tables():
        cells = []
        subsets = list(_subsets(rows, labels))
        for name, way in ways.items():
            auc, all_p, all_y = [], [], []
            for x, y, q, z in subsets:
                p = np.clip(way(x, y, q), 1e-4, 1 - 1e-4)
                auc.append(roc_auc_score(z, p))
                all_p.append(p)
                all_y.append(z)
            p, z = np.concatenate(all_p), np.concatenate(all_y)
            score = -np.mean(np.where(z == 1, np.log(p), np.log1p(-p)))
            totals[name].append((score, _calibration(p, z)))
            cells.append(f"{np.mean(auc):.3f} / {score:.3f} / {totals[name][-1][1]:.3f}")
        print(f"| {task} | " + " | ".join(cells) + " |", flush=True)
    means = {name: np.mean(v, axis=0) for name, v in totals.items()}
    print("| mean | " + " | ".join(f"{s:.3f} / {c:.3f}" for s, c in means.values()) + " |")


def _subsets(rows, labels, count=20):
    rng = np.random.default_rng(0)
    while count:
        take = rng.permutation(len(rows))[:100]
        x, y = rows[take], labels[take]
        if not 5 <= y[:30].sum() <= 25 or len(set(y[30:])) < 2:
            continue
        count -= 1
        loc, scale = x[:30].mean(0), x[:30].std(0)
        x = np.clip((x - loc) / np.where(scale > 0, scale, 1.0), -5, 5)
        yield x[:30], y[:30], x[30:], y[30:]


def _calibration(p, y, bins=20):
    at = np.minimum((p * bins).astype(int), bins - 1)
    parts = [(at == b) for b in range(bins)]
    return sum(abs(p[m].mean() - y[m].mean()) * m.mean() for m in parts if m.any())


def p_value(ks, n):
    """Kolmogorov's asymptotic law, with Stephens' correction."""
    t = ks * (np.sqrt(n) + 0.12 + 0.11 / np.sqrt(n))
    k = np.arange(1, 101)
    return float(np.clip(2 * np.sum((-1.0) ** (k - 1) * np.exp(-2 * k**2 * t**2)), 0, 1))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", choices=list(PARTS), required=True)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, default=63)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--draws", type=int, default=4096, help="data sets that borders are from")
    parser.add_argument("--sets", type=int, default=4000, help="data sets of the comparison")
    parser.add_argument("--points", type=int, default=20, help="hyper: points in context")
    parser.add_argument("--chunk", type=int, default=100, help="hyper: data sets at once")
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        help="hyper: timed runs at least (and 5 s), the best counts",
    )
    parser.add_argument(
        "--scores",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="regressions beside data",
    )
    parser.add_argument("--checkpoint")
    parser.add_argument("--save")
    options = parser.parse_args()
    options.steps = options.steps or SMALL[options.part]
    PARTS[options.part](options)


PARTS = {"fixed": fixed, "hyper": hyper, "tabular": tabular}

if __name__ == "__main__":
    main()
