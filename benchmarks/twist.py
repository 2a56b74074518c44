"""A twist learned for SmolLM2, before and after: effective sample size and spread of log Z.

    python benchmarks/twist.py [--cache cache/twist] [--picture twist.png]

Two targets over the model's own texts that end within `--tokens` tokens, temperature 1:

- *constraint*: one line that ends with an exclamation mark. Draws are guided by the mask before and
  after alike; what is learned is to see the end coming, where the model likes a full stop better.
- *reward*: 1.5 nats for each word that begins with s, given for whole texts only, so that without
  a twist nothing guides the draws. What has been earned so far is known to the twist; it learns
  what comes.

The twist is a bilinear form of what the frozen model knows: log psi of every next token is the
inner product of a linear map of the hidden state (its first principal components and the room
left) with a few numbers of the token (first principal components of its embedding, what the
potential says of it by itself, whether it ends the text, and 1). It proposes tokens, and weighs
states for resampling. It is learned by contrast of weighted posterior draws, from one run of our
particle filter with `--runs` times the particles, with draws of the proposal, in `--rounds` rounds,
each with the twist so far; the first knows what the potential allows next and no more. Hidden
states are stored, so that training reads them only; other runs are held out and tell whether it has
learned more than its data.

*Before* are `--runs` filters that know of no twist, *after* as many others, all with the same
number of particles: mean effective sample size before each resampling decision, as a share of the
particles, and at the end; the same share for independent draws without resampling; log of the mean
Z-hat, which both leave unbiased, their difference in standard errors, and the standard deviation of
log Z-hat; its root mean square distance from log Z by `--references` twisted runs with 8 times the
particles; processor seconds a run. The head is saved, loaded into an untrained one, and a run is
repeated with it.
"""

import argparse
import math
import pickle
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from feynkac import inference, models, ppl
from feynkac.inference import vi
from feynkac.models import learned

PROMPT = [{"role": "user", "content": "Write one short sentence about a cat."}]
NATS = 1.5


def begins_with_s(text):
    """The reward of a token."""
    return NATS if text[:2] in (" s", " S") else 0.0


def exclaims(text):
    """Of a token, what the constraint asks of the last one."""
    return float(text.endswith("!"))


def targets(lm, tokens):
    """Name -> the generation with its potential, its view, and what is said of each token."""
    story = models.generation(lm, PROMPT, tokens, at_length=ppl.Reject())

    def total(written, count, table):
        return jnp.sum(jnp.where(jnp.arange(written.shape[0]) < count, table[written], 0.0))

    says = {name: models.token_table(lm, f) for name, f in TOKENS.items()}

    def so_far(text, t, *args):
        written = text.carried.value[0]
        return total(written.tokens, written.count, says["reward"])

    within = story * models.Regex(r"[^\n]*!")
    tilted = learned.tilted(story, models.DeviceReward(total, says["reward"]), 1.0)
    view = learned.text_view(tilted)
    return {
        "constraint": (within, learned.text_view(within), says["constraint"]),
        "reward": (tilted, learned.View(view.features, view.law, so_far), says["reward"]),
    }


TOKENS = {"constraint": exclaims, "reward": begins_with_s}


def numbers(lm, says, k):
    """Of each token: k principal components of the embedding, unit variance, and three more."""
    table = np.asarray(lm.embedding, np.float32)
    table = table - table.mean(0)
    _, vectors = np.linalg.eigh(table.T @ table)
    rows = table @ vectors[:, ::-1][:, :k]
    own = np.where(np.isfinite(says), np.asarray(says), 0.0)
    end = np.arange(len(rows)) == lm.eos
    return jnp.asarray(
        np.column_stack([rows / rows.std(0), own, end, np.ones(len(rows))]), jnp.float32
    )


def blank(key, size, k, out):
    """An untrained head: k numbers of the hidden state, then a linear map, 0 at first."""
    rngs, zeros = nnx.Rngs(key), nnx.initializers.zeros
    first = nnx.Linear(size, k, use_bias=False, rngs=rngs)
    module = nnx.Sequential(first, nnx.Linear(k, out, kernel_init=zeros, rngs=rngs))
    return learned.head(key, size, out, module=module)


def reading(head, rows):
    """The head with the first map set to the rows' principal components; the last is kept."""
    rows = np.asarray(rows, np.float32)
    mean, scale = rows.mean(0), rows.std(0) + 1e-6
    z = (rows - mean) / scale
    values, vectors = np.linalg.eigh(z.T @ z / len(z))
    kernel = first_kernel(head)
    k = kernel.shape[1]
    top = vectors[:, ::-1][:, :k] / np.sqrt(values[::-1][:k])
    top[:, -1] = np.eye(len(mean))[-1]  # the room left, as it is
    head = jax.tree.map(lambda x: jnp.asarray(top, x.dtype) if x is kernel else x, head)
    return replace(head, mean=jnp.asarray(mean), scale=jnp.asarray(scale))


def first_kernel(head):
    """The array of the first map."""
    size = head.mean.shape[0]
    return next(x for x in jax.tree.leaves(head.network) if x.ndim == 2 and x.shape[0] == size)


def runs_of(smc, model, first, number):
    """Runs by key: particles, and (CPU seconds, ESS share of each step, at the end, log Z)."""
    runs, told = [], []
    for seed in range(first, first + number):
        start = time.process_time()
        run = jax.block_until_ready(smc.run(jax.random.key(seed), model))
        spent, n = time.process_time() - start, run.log_weights.shape[0]
        used = int(np.max(run.lengths))
        history = np.asarray(run.ess_history)[1 : used + 1] / n
        runs.append(run)
        told.append((spent, history, float(run.ess) / n, float(run.log_evidence)))
        print(f"  seed {seed}: log Z {told[-1][3]:.3f}, {spent:.0f} s", file=sys.stderr, flush=True)
    return inference.pool(*runs), told


def cached(path, make):
    """What `make` returns, from a file if it is there."""
    if path is not None and path.exists():
        return pickle.loads(path.read_bytes())
    made = jax.tree.map(lambda x: np.asarray(x) if isinstance(x, jax.Array) else x, make())
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(made))
    return made


def drawn(smc, model, view, proposal, first, number):
    """Runs of an algorithm, read along the model; their numbers; and the most probable texts."""
    pooled, told = runs_of(smc, model, first, number)
    read = learned.walks(model, pooled, view, proposal=proposal)
    texts = [(t.probability, t.text) for t in models.texts(model.lm, pooled)[:8]]
    return read, told, texts


def objective(ctx, head, twist, positives, negatives):
    """What is maximized: less the contrast."""
    return -learned.contrastive(replace(twist, head=head), positives, negatives)


def taught(name, model, view, values, options):
    """A twist; what was drawn in the first round; contrasts and seconds by round."""
    size = model.lm.embedding.shape[1] + 1
    head = blank(jax.random.key(0), size, options.hidden, values.shape[1])
    twist, story, before = learned.NextTwist(head, view, values), [], None
    for i in range(options.rounds):
        own = {} if i == 0 else {"proposal": twist.proposal()}
        own |= {"twist": twist} if i else {}
        n, plain = options.particles, own.get("proposal")
        filters = {
            "filter": inference.SMC(n, **own),
            "plain": inference.SMC(n, None, plain),
            "large": inference.SMC(n * options.runs, **own),
        }
        sets, seed = {}, 100 + 1000 * i
        for kind, smc in filters.items():
            path = options.cache and Path(options.cache) / f"{name}_{i}_{kind}.pkl"
            number = 1 if kind == "large" else options.runs
            parts = (smc, model, view, plain, seed, number)
            sets[kind] = cached(path, lambda parts=parts: drawn(*parts))
            seed += 50
        began = time.perf_counter()
        read = {kind: jax.tree.map(jnp.asarray, rows[0]) for kind, rows in sets.items()}
        every = jnp.arange(n * options.runs)
        kept = (read["large"], read["plain"].take(every[n:]))
        held = (read["filter"], read["plain"].take(every[:n]))
        if i == 0:
            before = sets
            twist = replace(twist, head=reading(twist.head, kept[1].features[kept[1].active]))
        fixed, contrast = first_kernel(twist.head), jax.jit(objective, static_argnums=0)
        # The loss is convex in the last map; what is no bias is held near 0.
        ridge = optax.masked(
            optax.add_decayed_weights(options.decay),
            lambda tree: jax.tree.map(lambda x: x.ndim == 2, tree),
        )
        optimizer = optax.chain(ridge, optax.sgd(options.rate, momentum=0.9))
        levels = [-float(contrast(None, twist.head, twist, *held))]
        fit = vi.fit(
            jax.random.key(i),
            vi.objective(objective),
            twist.head,
            (twist, *kept),
            optimizer=optimizer,
            steps=options.steps,
            every=options.steps,
            trainable=jax.tree.map(
                lambda x, t, fixed=fixed: t and x is not fixed, twist.head, twist.head.trainable
            ),
            progress=False,
            throw=True,
        )
        twist = replace(twist, head=fit.params)
        levels.append(-float(contrast(None, twist.head, twist, *held)))
        story.append((*levels, -float(fit.values[-1]), time.perf_counter() - began))
        print(f"{name}, round {i}: contrast {story[-1]}", file=sys.stderr, flush=True)
    return twist, before, story


def level(runs):
    """Log of the mean of Z-hat and its standard error on the scale of Z, relative."""
    levels = np.array([run[3] for run in runs])
    top = levels[np.isfinite(levels)].max(initial=-np.inf)
    z = np.exp(levels - top)
    return top + math.log(z.mean()), z.std(ddof=1) / len(z) ** 0.5 / z.mean()


def share(log_weights):
    """Effective sample size of weights over their number."""
    w = np.exp(log_weights - np.max(log_weights))
    return w.sum() ** 2 / (w**2).sum() / len(w)


def table(name, rows, alone, truth):
    """Lines of the table, with how many standard errors the evidences differ by.

    Where hardly any particle finds what weighs most, log Z-hat is mostly too low and varies little:
    what tells is its distance from `truth`.
    """
    (a, error_a), (b, error_b) = level(rows["before"]), level(rows["after"])
    x, y = math.exp(a - max(a, b)), math.exp(b - max(a, b))
    z = (y - x) / math.hypot(x * error_a, y * error_b)
    for when, (at, error) in (("before", (a, error_a)), ("after", (b, error_b))):
        runs = rows[when]
        cells = [name, when, f"{np.mean(np.concatenate([run[1] for run in runs])):.3f}"]
        cells += [f"{np.mean([run[2] for run in runs]):.3f}", f"{alone[when]:.3f}"]
        cells += [f"{at:.2f} ± {error:.2f}", f"{z:+.1f}" if when == "after" else ""]
        spread = np.std([run[3] for run in runs], ddof=1)
        distance = np.mean([(run[3] - truth) ** 2 for run in runs]) ** 0.5
        cells += [f"{spread:.3f}", f"{distance:.3f}", f"{np.median([run[0] for run in runs]):.1f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


def picture(results, path):
    """Effective sample size token by token, and log Z of each run."""
    import matplotlib.pyplot as plt

    colours = {"before": "#9a9a9a", "after": "#1f6fb2"}
    figure, axes = plt.subplots(
        2, len(results), figsize=(4.4 * len(results), 6), squeeze=False, layout="constrained"
    )
    for column, (name, rows) in zip(axes.T, results.items(), strict=True):
        for when, runs in rows.items():
            length = max(len(run[1]) for run in runs)
            padded = np.full((len(runs), length), np.nan)
            for row, run in zip(padded, runs, strict=True):
                row[: len(run[1])] = run[1]
                column[0].plot(1 + np.arange(len(run[1])), run[1], color=colours[when], alpha=0.25)
            mean = np.nanmean(padded, 0)
            column[0].plot(1 + np.arange(length), mean, color=colours[when], lw=2.5, label=when)
            at = list(rows).index(when) + np.linspace(-0.12, 0.12, len(runs))
            column[1].plot(at, [run[3] for run in runs], "o", color=colours[when])
        column[0].set(title=name, xlabel="tokens", ylabel="ESS / particles", ylim=(0, 1.02))
        column[1].set(xticks=range(len(rows)), xticklabels=list(rows), xlim=(-0.6, 1.6))
        column[1].set(ylabel="log Z-hat of each run, nats")
        for axis in column:
            axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False)
    figure.savefig(path, dpi=130)


def restored(lm, twist, options):
    """The twist with its head from a file, loaded into an untrained one; kilobytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(options.save or Path(folder) / "twist.safetensors")
        learned.save(path, twist.head, lm, prompt=PROMPT, tokens=options.tokens)
        out = twist.values.shape[1]
        like = blank(jax.random.key(7), twist.head.mean.shape[0], options.hidden, out)
        return replace(twist, head=learned.load(path, like, lm)), path.stat().st_size / 1024


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=["constraint", "reward"])
    parser.add_argument("--particles", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=24, help="at most, the end included")
    parser.add_argument("--runs", type=int, default=6, help="of each kind")
    parser.add_argument("--references", type=int, default=4, help="runs of 8 times the particles")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=400, help="of the optimizer, a round")
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--decay", type=float, default=0.2, help="ridge")
    parser.add_argument("--hidden", type=int, default=4, help="numbers of the hidden state")
    parser.add_argument("--components", type=int, default=0, help="of the embedding")
    parser.add_argument("--cache", help="a folder for draws and results, to go on from")
    parser.add_argument("--picture", help="where the plot goes")
    parser.add_argument("--save", help="where the last twist goes")
    options = parser.parse_args()

    began = time.perf_counter()
    lm = models.load("smollm2-135m-instruct")
    print(
        f"SmolLM2-135M, at most {options.tokens} tokens, {options.particles} particles, "
        f"{options.runs} runs; jax {jax.__version__}, {jax.devices()[0].device_kind}.\n"
    )
    print("| target | twist | ESS/N a token | at the end | without resampling | log Z | z | "
          "sd of log Z | rms error | CPU s a run |\n"
          "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|")  # fmt: skip
    results, told = {}, []
    for name, (model, view, says) in targets(lm, options.tokens).items():
        if name not in options.cases:
            continue
        values = numbers(lm, says, options.components)
        twist, before, story = taught(name, model, view, values, options)
        again, size = restored(lm, twist, options)
        guided = {"proposal": twist.proposal()}
        cases = {
            "filter": (inference.SMC(options.particles, twist=twist, **guided), 5000),
            "plain": (inference.SMC(options.particles, resampler=None, **guided), 6000),
        }
        after = {}
        for kind, (smc, seed) in cases.items():
            path = options.cache and Path(options.cache) / f"{name}_after_{kind}.pkl"
            parts = (smc, model, twist.view, twist.proposal(), seed, options.runs)
            after[kind] = cached(path, lambda parts=parts: drawn(*parts))
        results[name] = {"before": before["filter"][1], "after": after["filter"][1]}
        alone = {"before": before, "after": after}
        many = inference.SMC(8 * options.particles, twist=twist, **guided)
        path = options.cache and Path(options.cache) / f"{name}_reference.pkl"
        parts = (many, model, 7000, options.references)
        large = cached(path, lambda parts=parts: runs_of(*parts)[1])
        truth, error = level(large)
        shares = {k: share(v["plain"][0].log_weights) for k, v in alone.items()}
        table(name, results[name], shares, truth)
        told.append(f"{name}: log Z by {len(large)} runs of {8 * options.particles} particles "
                    f"{truth:.2f} ± {error:.2f}.")  # fmt: skip
        smc = inference.SMC(options.particles, twist=again, proposal=again.proposal())
        same = float(smc.run(jax.random.key(5000), model).log_evidence)
        same = "the same" if same == results[name]["after"][0][3] else "ANOTHER"
        losses = "; ".join(
            f"{a:.3f} to {b:.3f} held out, to {c:.3f} in training, {s:.0f} s"
            for a, b, c, s in story
        )
        told.append(f"{name}: contrast by round {losses}; head of {size:.0f} KiB, saved and loaded "
                    f"gives {same} log Z.")  # fmt: skip
        for when, sets in (("before", before), ("after", after)):
            told += [f"  {when}, {p:.3f}: {text!r}" for p, text in sets["filter"][2]]
    print("\n" + "\n".join(told) + f"\nAll: {time.perf_counter() - began:.0f} s.")
    if options.picture:
        picture(results, options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
