"""Coin sampling against SVGD at the best and at wrong learning rates, on known posteriors.

Targets as in Sharrock and Nemeth (2023), section 4: a banana, two Gaussians, a squiggle, and
Bayesian logistic regression (8 coefficients and their precision, made-up data). All methods start
from the same particles and have the same kernel (RBF, median bandwidth); SVGD is stepped by
RMSProp, the rate chosen by the discrepancy after the last iteration, and a hundred times more or
less. Reported: the kernelized Stein discrepancy at points of the run, and the maximum mean
discrepancy to reference draws (exact; of NUTS for the regression) at its end, both over seeds.
"""

import argparse

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import optax

from feynkac import inference, ppl
from feynkac.inference.vi import particles
from feynkac.inference.vi.guides.layout import layout

RATES = np.geomspace(1e-3, 1.0, 7)


@ppl.program
def banana(ctx):
    """The Rosenbrock banana: a curved Gaussian."""
    x = ctx.sample("x", dist.Normal(0.0, 1.0))
    ctx.sample("y", dist.Normal(0.5 * x - x**2 - 1.0, jnp.sqrt(0.75)))


@ppl.program
def two_gaussians(ctx):
    """Two well separated modes, of weights 1/2."""
    means = jnp.asarray([[2.0, 2.0], [-2.0, -2.0]])
    parts = dist.MultivariateNormal(means, 0.5 * jnp.eye(2))
    ctx.sample("x", dist.MixtureSameFamily(dist.Categorical(jnp.full(2, 0.5)), parts))


@ppl.program
def squiggle(ctx):
    """A Gaussian bent along a sine."""
    x = ctx.sample("x", dist.Normal(1.0, jnp.sqrt(2.0)))
    mean = 1.0 + 0.125 * (x - 1.0) - jnp.sin(2.0 * x)
    ctx.sample("y", dist.Normal(mean, jnp.sqrt(0.46875)))


@ppl.program
def logistic(ctx, x, y):
    """Coefficients with a common unknown precision."""
    precision = ctx.sample("precision", dist.Gamma(1.0, 0.1))
    scale = 1.0 / jnp.sqrt(precision)
    w = ctx.sample("w", dist.Normal(jnp.zeros(x.shape[1]), 1.0).to_event(1))
    ctx.observe("y", dist.Bernoulli(logits=scale * x @ w), y)


def regression(rows=200, size=8):
    """The logistic regression on data drawn once."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(rows, size)), rng.normal(size=size)
    y = rng.uniform(size=rows) < 1 / (1 + np.exp(-x @ w))
    return ppl.Target(logistic, (jnp.asarray(x, float), jnp.asarray(y, jnp.int32)))


def targets():
    """The targets by name."""
    plain = {"banana": banana, "two Gaussians": two_gaussians, "squiggle": squiggle}
    return {name: ppl.Target(p) for name, p in plain.items()} | {"logistic": regression()}


def reference(key, target, n):
    """Draws of the posterior: exact without data, else of NUTS."""
    if not target.args:
        return jax.vmap(lambda k: target.model.simulate(k).choices)(jax.random.split(key, n))
    tuned = inference.warmup(key, inference.NUTS(~ppl.select(), 0.1), target, n_chains=4)
    chains = inference.MCMC(tuned.kernel, 4, n // 4, 0, 2, init=tuned.choices).run(key, target)
    print(f"NUTS: largest R-hat {max(float(np.max(r)) for r in chains.r_hat().values()):.3f}")
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), chains.choices)


def starts(key, target, n):
    """Particles whose coordinates are standard normal."""
    place = layout(target)
    x = jax.random.normal(key, (n, place.size))
    return jax.vmap(lambda z: place.choices(z)[0])(x)


def runs(optimizer, steps, begin, target):
    """One swarm for each set of starts."""
    method = particles.ParticleVI(len(jax.tree.leaves(begin[0])[0]), steps, optimizer=optimizer)
    return [method.run(jax.random.key(0), target, init=x) for x in begin]


def main():
    """Run, print the table, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--particles", type=int, default=50)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--picture", default="coin.png")
    parser.add_argument("--targets", nargs="+", default=list(targets()))
    args = parser.parse_args()
    names = {name: target for name, target in targets().items() if name in args.targets}
    figure, axes = plt.subplots(2, len(names), figsize=(4 * len(names), 7), squeeze=False)
    marks = [args.steps // 10, args.steps // 3, args.steps - 1]
    heads = "".join(f"  KSD at {m + 1:>5}" for m in marks)
    print(f"{'target':14} {'method':22}{heads}  MMD at the end")
    for column, (name, target) in enumerate(names.items()):
        draws = reference(jax.random.key(0), target, 1000)
        begin = [starts(jax.random.key(i), target, args.particles) for i in range(args.seeds)]

        found = [runs(_rms(rate), args.steps, begin, target) for rate in RATES]
        best = int(np.argmin([np.mean([_filled(s)[-1] for s in swarms]) for swarms in found]))
        rate = RATES[best]
        shown = {
            "Coin SVGD": runs(particles.coin(), args.steps, begin, target),
            f"SVGD, best {rate:.3g}": found[best],
        }
        for factor, what in ((0.01, "100 times less"), (100.0, "100 times more")):
            shown[f"SVGD, {what}"] = runs(_rms(rate * factor), args.steps, begin, target)
        for label, swarms in shown.items():
            curves = np.stack([_filled(s) for s in swarms])
            mmds = [float(particles.mmd(s.choices, draws)) for s in swarms]
            at = "".join(f"  {curves[:, m].mean():12.4f}" for m in marks)
            print(f"{name:14} {label:22}{at}  {np.mean(mmds):.4f} +- {np.std(mmds):.4f}")
            axes[0, column].loglog(np.arange(1, args.steps + 1), curves.mean(0), label=label)
        rows = [np.arange(i, len(jax.tree.leaves(draws)[0]), 4)[: args.particles] for i in range(4)]
        exact = [jax.tree.map(lambda x, r=r: x[r], draws) for r in rows]
        level = np.mean([float(particles.ksd(x, target)) for x in exact])
        mmds = [float(particles.mmd(x, draws)) for x in exact]
        print(f"{name:14} {'independent draws':22}{'':28}  {level:12.4f}  {np.mean(mmds):.4f}")
        axes[0, column].axhline(level, color="grey", ls=":", label="independent draws")
        axes[0, column].set(title=name, xlabel="iteration", ylabel="KSD")
        flat = [np.column_stack([np.reshape(x, (len(x), -1)) for x in c.values()])[:, -2:]
                for c in (draws, shown["Coin SVGD"][0].choices)]  # fmt: skip
        axes[1, column].plot(*flat[0].T, ".", ms=2, color="lightgrey")
        axes[1, column].plot(*flat[1].T, ".", ms=5)
        axes[1, column].set(title="Coin SVGD over reference draws")
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(args.picture, dpi=120)


def _rms(rate):
    """The step of Liu and Wang's own code."""
    return optax.rmsprop(rate, decay=0.9, eps=1e-6)


def _filled(swarm):
    """The discrepancy by iteration; infinite from where a run failed."""
    return np.where(np.isfinite(swarm.ksd), swarm.ksd, np.inf)


if __name__ == "__main__":
    main()
