"""Entropic annealing and look-ahead against plain filtering, where early scores are overconfident.

A text of T tokens has a reward R(x) = sum_t a_t[x_t]; what scores a prefix exaggerates and is
partly wrong, and tells the truth at the end: s_t = gain_t sum_{u <= t} b_u[x_u], s_T = R. Steps are
weighed by the differences, so the target is p(x) exp(R(x)) whatever the scores are, and its
evidence and posterior are products over steps: exact. Every method has the same number of moves.
Oracle coverage: does the population hold a text that only a tenth of the posterior surpasses;
drawn by weight: is one text drawn by weight such a text (exactly 0.1 for the posterior).
"""

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np

from feynkac import inference, ppl
from feynkac.inference.annealing import (
    AdaptiveTempering,
    Entropic,
    EntropyRule,
    HeuristicEntropic,
    Ramp,
)

STEPS, TOKENS = 16, 6


def model(gain: float, truth: float, seed: int = 3) -> ppl.Target:
    """Prefix scores exaggerate `gain` times at the start and agree with the reward by `truth`."""
    a, noise = 0.6 * np.random.default_rng(seed).normal(size=(2, STEPS, TOKENS))
    b = truth * a + np.sqrt(1 - truth**2) * noise
    gains = 1 + (gain - 1) * np.linspace(1, 0, STEPS) ** 2

    def init(ctx, a, b, gains):
        return {"true": jnp.zeros(()), "said": jnp.zeros(()), "score": jnp.zeros(())}

    def step(ctx, state, t, a, b, gains):
        token = ctx.sample("token", ppl.Token(jnp.zeros(TOKENS)))
        true, said = state["true"] + a[t, token], state["said"] + b[t, token]
        score = jnp.where(t == STEPS - 1, true, gains[t] * said)
        ctx.factor("score", score - state["score"])
        return {"true": true, "said": said, "score": score}

    return ppl.Target(
        ppl.StateSpace(init, step, STEPS), tuple(jnp.asarray(x, float) for x in (a, b, gains))
    )


def exact(target: ppl.Target, draws: int = 200_000) -> tuple[float, float]:
    """Log evidence, and the reward that one posterior draw in ten exceeds."""
    a = np.asarray(target.args[0], np.float64)
    each = np.log(np.mean(np.exp(a), axis=1))
    p = np.exp(a - each[:, None]) / TOKENS
    rng, rewards = np.random.default_rng(0), np.zeros(draws)
    for t in range(STEPS):
        rewards += rng.choice(a[t], size=draws, p=p[t] / p[t].sum())
    return float(each.sum()), float(np.quantile(rewards, 0.9))


def methods(moves: int) -> dict[str, inference.SMC]:
    """Each with `moves` particle moves a step, rollouts included."""
    always, often = inference.Systematic(ess_threshold=1.0), inference.Systematic()

    def smc(share=1, resampler=often, **options):
        return inference.SMC(moves // share, resampler, **options)

    return {
        "plain, every step": smc(resampler=always),
        "plain, ESS < N/2": smc(),
        "entropic (ESS rule)": smc(resampler=always, annealing=Entropic()),
        "entropic (entropy rule, throughout)": smc(
            resampler=always, annealing=Entropic(EntropyRule(), 1.0, 1.0)
        ),
        "ePF as published": smc(resampler=always, annealing=HeuristicEntropic()),
        "ramp": smc(annealing=Ramp(0.0)),
        "adaptive (CESS 0.9)": smc(annealing=AdaptiveTempering(0.9)),
        "look-ahead 1": smc(2, twist=inference.Lookahead(1)),
        "look-ahead 3 x 2": smc(7, twist=inference.Lookahead(3, 2)),
        "ramp, look-ahead 1": smc(2, annealing=Ramp(0.0), twist=inference.Lookahead(1)),
    }


@eqx.filter_jit
def runs(smc, keys, target):
    def one(key):
        p = smc.run(key, target)
        log_z = jax.nn.logsumexp(p.log_weights) - jnp.log(1.0 * smc.n_particles)
        return log_z, p.state["true"], p.weights

    return jax.lax.map(one, keys, batch_size=256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moves", type=int, default=64, help="particle moves a step")
    parser.add_argument("--runs", type=int, default=4096)
    parser.add_argument("--gain", type=float, default=4.0)
    parser.add_argument("--truth", type=float, default=0.5)
    parser.add_argument("--picture", default="benchmarks/annealing.png")
    args = parser.parse_args()
    target = model(args.gain, args.truth)
    log_z, top = exact(target)
    keys = jax.random.split(jax.random.key(1), args.runs)
    print(f"log Z = {log_z:.3f}; a posterior draw has R > {top:.2f} with probability 0.1\n")
    print("| method | N | oracle coverage | drawn by weight | mean Z-hat / Z | rmse of log Z-hat |")
    print("|---|---:|---:|---:|---:|---:|")
    shown = {}
    for name, smc in methods(args.moves).items():
        log_zs, rewards, weights = (np.asarray(x, np.float64) for x in runs(smc, keys, target))
        found = (rewards.max(axis=1) > top).astype(float)
        drawn = np.mean(np.sum(weights * (rewards > top), axis=1))
        ratio = np.exp(log_zs - log_z)
        heuristic = smc.annealing is not None and not smc.annealing.keeps_target
        mean, rmse = "none", "none"
        if not heuristic:
            mean = f"{ratio.mean():.2f} ± {ratio.std() / np.sqrt(len(ratio)):.2f}"
            rmse = f"{np.sqrt(np.mean((log_zs - log_z) ** 2)):.2f}"
        numbers = f"{smc.n_particles} | {found.mean():.3f} | {drawn:.3f} | {mean} | {rmse}"
        print(f"| {name} | {numbers} |", flush=True)
        shown[name] = (found.mean(), None if heuristic else log_zs - log_z)
    plot(shown, args.picture)


def plot(shown: dict, path: str) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    places = np.arange(len(shown))[::-1]
    left.barh(places, [coverage for coverage, _ in shown.values()], color="#4878a8", height=0.6)
    left.set_yticks(places, list(shown))
    left.set_xlabel("runs whose population holds a top-decile text")
    kept = [(y, errors) for y, (_, errors) in zip(places, shown.values(), strict=True)]
    kept = [(y, np.clip(e, -15, None)) for y, e in kept if e is not None]
    right.axvline(0, color="black", lw=0.8)
    right.boxplot(
        [e for _, e in kept],
        positions=[y for y, _ in kept],
        orientation="horizontal",
        widths=0.6,
        whis=(5, 95),
        showfliers=False,
        medianprops={"color": "#c04040"},
    )
    right.set_yticks(places, list(shown))
    right.set_xlabel("log Z-hat - log Z, nats (5 to 95 % of runs)")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
