"""A twist learned for SmolLM2, before and after: effective sample size a token and spread of log Z.

    python benchmarks/twist.py [--picture twist.png]

Two targets over the model's own texts that end within `--tokens` tokens, temperature 1:

- *constraint*: no letter e. Draws are guided by the mask before and after alike, so that what is
  learned is where words lead.
- *reward*: 1.5 nats for each word that begins with s, given for whole texts only, so that without
  a twist nothing guides the draws.

The twist is a linear head on the frozen model's hidden state: log psi of every next token is its
inner product with the token's embedding (its first principal components, and a constant). It
proposes tokens, and weighs states for resampling. It is learned by contrast of weighted posterior
draws, from our particle filter, with draws of the proposal, in `--rounds` rounds, each with the
twist so far; the first knows what the potential allows next and no more. Hidden states are stored,
so that training reads them only, and stops where the contrast of a run that is held out is least.

Then `--seeds` runs each of the same filter before and after, taken in turn, in columns: mean
effective sample size before each resampling decision, as a share of the particles (of tokens that
some text still wrote) and at the end; log of the mean Z-hat, which both leave unbiased, their
difference in standard errors, and the standard deviation of log Z-hat; seconds a run. The head is
saved, loaded into an untrained one, and the run of seed 0 repeated with it.
"""

import argparse
import math
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from feynkac import inference, models, ppl
from feynkac.inference import vi
from feynkac.inference.vi.fit import fit
from feynkac.models import learned

PROMPT = [{"role": "user", "content": "Write one short sentence about a cat."}]
NATS = 1.5


def begins_with_s(text):
    """The reward of a token."""
    return NATS if text[:2] in (" s", " S") else 0.0


def without_e(text):
    """The constraint on a token."""
    return 0.0 if "e" not in text.lower() else -math.inf


def targets(lm, tokens):
    """Name -> the generation with its potential."""
    story = models.generation(lm, PROMPT, tokens, at_length=ppl.Reject())

    def total(written, count, table):
        return jnp.sum(jnp.where(jnp.arange(written.shape[0]) < count, table[written], 0.0))

    reward = models.DeviceReward(total, models.token_table(lm, begins_with_s))
    return {
        "constraint": story * models.TokenReward(models.token_table(lm, without_e)),
        "reward": learned.tilted(story, reward, 1.0),
    }


def directions(lm, k):
    """Rows of the embedding along its first k - 1 principal components, unit variance; and 1."""
    table = np.asarray(lm.embedding, np.float32)
    table = table - table.mean(0)
    _, vectors = np.linalg.eigh(table.T @ table)
    rows = table @ vectors[:, ::-1][:, : k - 1]
    return jnp.asarray(
        np.concatenate([rows / rows.std(0), np.ones((len(rows), 1))], 1), jnp.float32
    )


def drawn(key, algorithm, model, view, proposal, options):
    """Runs of an algorithm, read along the model: those to learn from, and one to stop by."""
    runs = [algorithm.run(each, model) for each in jax.random.split(key, options.runs + 1)]
    pooled = inference.pool(*runs)
    read = learned.walks(model, pooled, view, proposal=proposal)
    first, n = options.particles, pooled.log_weights.shape[0]
    return jax.block_until_ready((read.take(jnp.arange(first, n)), read.take(jnp.arange(first))))


def objective(ctx, head, twist, positives, negatives):
    """What is maximized: less the contrast."""
    return -learned.contrastive(replace(twist, head=head), positives, negatives)


def taught(key, model, values, options):
    """A twist, and what its training took: seconds of drawing and of learning, and contrasts."""
    view, size = learned.text_view(model), values.shape[1]
    head = learned.head(key, model.lm.embedding.shape[1] + 1, size, width=None)
    twist, spent, story = learned.NextTwist(head, view, values), np.zeros(2), []
    for i in range(options.rounds):
        keys = jax.random.split(jax.random.fold_in(key, i), 3)
        began, proposal = time.perf_counter(), twist.proposal()
        filtering = inference.SMC(options.particles, proposal=proposal, twist=twist)
        plain = inference.SMC(options.particles, resampler=None, proposal=proposal)
        positives, others = drawn(keys[0], filtering, model, view, proposal, options)
        negatives, contrast = drawn(keys[1], plain, model, view, proposal, options)
        drawing = time.perf_counter()
        if i == 0:
            rows = negatives.features[negatives.active]
            twist = replace(twist, head=learned.head(key, rows, size, width=None))
        held = jax.jit(lambda head, *args: -objective(None, head, *args))
        kept = [(float(held(twist.head, twist, others, contrast)), twist.head)]

        def watch(report, twist=twist, others=others, contrast=contrast, held=held, kept=kept):
            head = jax.tree.map(jnp.copy, report.params())
            kept.append((float(held(head, twist, others, contrast)), head))

        fit(
            keys[2],
            vi.objective(objective),
            twist.head,
            (twist, positives, negatives),
            optimizer=optax.adamw(options.rate, weight_decay=options.decay),
            steps=options.steps,
            every=max(options.steps // 10, 1),
            trainable=twist.head.trainable,
            callback=watch,
            progress=False,
        )
        least, head = min(kept, key=lambda pair: pair[0])
        twist = replace(twist, head=head)
        spent += [drawing - began, time.perf_counter() - drawing]
        story.append((kept[0][0], least))
    return twist, spent, story


def compared(model, twist, options):
    """Runs before and after, in turn: name -> list of (seconds, ess of each step, end, log Z)."""
    cases = {
        "before": inference.SMC(options.particles),
        "after": inference.SMC(options.particles, proposal=twist.proposal(), twist=twist),
    }
    rows = {name: [] for name in cases}
    for seed in range(-1, options.seeds):  # the first of each compiles
        for name, smc in cases.items():
            start = time.perf_counter()
            particles = jax.block_until_ready(smc.run(jax.random.key(1000 + seed), model))
            spent = time.perf_counter() - start
            if seed >= 0:
                used = int(np.max(particles.lengths))
                history = np.asarray(particles.ess_history)[1 : used + 1] / options.particles
                last = float(particles.ess) / options.particles
                rows[name].append((spent, history, last, float(particles.log_evidence)))
    return rows


def level(runs):
    """Log of the mean of Z-hat and its standard error on the scale of Z, relative."""
    levels = np.array([run[3] for run in runs])
    top = levels[np.isfinite(levels)].max(initial=-np.inf)
    z = np.exp(levels - top)
    return top + math.log(z.mean()), z.std(ddof=1) / len(z) ** 0.5 / z.mean()


def table(name, rows):
    """Lines of the table; how many standard errors the evidences differ by."""
    (a, error_a), (b, error_b) = level(rows["before"]), level(rows["after"])
    x, y = math.exp(a - max(a, b)), math.exp(b - max(a, b))
    z = (y - x) / math.hypot(x * error_a, y * error_b)
    for when, (at, error) in (("before", (a, error_a)), ("after", (b, error_b))):
        runs = rows[when]
        share = np.concatenate([run[1] for run in runs])
        spread = np.std([run[3] for run in runs], ddof=1)
        cells = [name, when, f"{np.nanmean(share):.3f}", f"{np.mean([r[2] for r in runs]):.3f}"]
        cells += [f"{at:.2f} ± {error:.2f}", f"{z:+.1f}" if when == "after" else ""]
        cells += [f"{spread:.3f}", f"{np.median([run[0] for run in runs]):.2f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


def picture(results, path):
    """Effective sample size token by token, and log Z of each run."""
    import matplotlib.pyplot as plt

    colours = {"before": "#8a8a8a", "after": "#1f6fb2"}
    figure, axes = plt.subplots(2, len(results), figsize=(4.2 * len(results), 6), squeeze=False)
    for column, (name, rows) in zip(axes.T, results.items(), strict=True):
        for when, runs in rows.items():
            length = max(len(run[1]) for run in runs)
            padded = np.full((len(runs), length), np.nan)
            for row, run in zip(padded, runs, strict=True):
                row[: len(run[1])] = run[1]
            mean = np.nanmean(padded, 0)
            column[0].plot(1 + np.arange(length), mean, color=colours[when], label=when)
            at = list(rows).index(when) + np.linspace(-0.15, 0.15, len(runs))
            column[1].plot(at, [run[3] for run in runs], "o", color=colours[when])
        column[0].set(title=name, xlabel="tokens", ylabel="ESS / particles", ylim=(0, 1.02))
        column[1].set(xticks=range(len(rows)), xticklabels=list(rows), ylabel="log Z, nats")
        for axis in column:
            axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def restored(lm, model, twist, options):
    """Save the head, load it into an untrained one, and run seed 0 with it: the same number?"""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(options.save or Path(folder) / "twist.safetensors")
        learned.save(path, twist.head, lm, prompt=PROMPT, tokens=options.tokens)
        size, out = twist.head.mean.shape[0], twist.values.shape[1]
        blank = learned.head(jax.random.key(7), size, out, width=None)
        again = replace(twist, head=learned.load(path, blank, lm))
        kilobytes = path.stat().st_size / 1024
    smc = inference.SMC(options.particles, proposal=again.proposal(), twist=again)
    return float(smc.run(jax.random.key(1000), model).log_evidence), kilobytes


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=["constraint", "reward"])
    parser.add_argument("--particles", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=24, help="at most, the end included")
    parser.add_argument("--runs", type=int, default=4, help="to learn from, of each kind and round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200, help="of the optimizer, a round")
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--decay", type=float, default=1e-1)
    parser.add_argument("--components", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--picture", help="where the plot goes")
    parser.add_argument("--save", help="where the last twist goes")
    options = parser.parse_args()

    began = time.perf_counter()
    lm = models.load("smollm2-135m-instruct")
    values = directions(lm, options.components)
    print(
        f"SmolLM2-135M, at most {options.tokens} tokens, {options.particles} particles, "
        f"{options.seeds} seeds; jax {jax.__version__}, {jax.devices()[0].device_kind}.\n"
    )
    print(
        "| target | twist | ESS/N a token | ESS/N at the end | log Z | z | sd of log Z | s a run |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    results, told = {}, []
    for number, (name, model) in enumerate(targets(lm, options.tokens).items()):
        if name not in options.cases:
            continue
        twist, spent, contrasts = taught(jax.random.key(number), model, values, options)
        results[name] = compared(model, twist, options)
        table(name, results[name])
        evidence, size = restored(lm, model, twist, options)
        same = evidence == results[name]["after"][0][3]
        losses = "; ".join(f"{a:.3f} to {b:.3f}" for a, b in contrasts)
        told.append(
            f"{name}: {options.runs} x {options.particles} texts of each kind a round, drawn and "
            f"read in {spent[0]:.0f} s, learned from in {spent[1]:.0f} s; contrast of held-out "
            f"ones by round {losses}; saved and loaded ({size:.0f} KiB): log Z of seed 0 is "
            f"{'the same' if same else 'ANOTHER'}."
        )
    print("\n" + "\n".join(told) + f"\nAll: {time.perf_counter() - began:.0f} s.")
    if options.picture:
        picture(results, options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
