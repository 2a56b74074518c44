"""Attend, infer, repeat: what each way through the discrete draws costs, and what it learns.

Strips with nought to three bumps of unknown place and height. The guide, one small network, looks
at what is not yet explained, says whether there is a bump more, and where; places and heights are
reparameterized, presence is enumerated, scored, measure-valued, or a mix of them (as in Becker et
al. 2024, "Probabilistic programming with programmable variational inference", section 8). Of a
flip, the measure-valued estimate and that by enumeration are the same number. A step is one
gradient of a batch and its update by Adam; compiled before, blocked, strategies in turn.

    python benchmarks/air.py
    python benchmarks/air.py --steps 300 --rounds 3 --picture air.png
"""

import argparse

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import optax
from timing import Others, seconds

from feynkac import ppl
from feynkac.inference import vi
from feynkac.ppl import dist

PIXELS, GLIMPSES, HIDDEN, PRESENT, NOISE = 24, 3, 64, 0.6, 0.15
GRID = jnp.linspace(-3.0, 3.0, PIXELS)


def bump(place, height):
    return height * jnp.exp(-0.5 * ((GRID - place) / 0.3) ** 2)


@ppl.program
def something(ctx, law):
    """A bump; `law` is location and scale of place and of height."""
    place = ctx.sample("place", dist.Normal(law[0], law[1]))
    height = ctx.sample("height", dist.Normal(law[2], law[3]))
    return bump(place, height)


@ppl.program
def nothing(ctx, law):
    return jnp.zeros(PIXELS)


LOOK = ppl.cond(something, nothing)
PRIOR = jnp.array([0.0, 1.5, 1.0, 0.2])
ODDS = jnp.log(PRESENT / (1 - PRESENT))


def seen(ctx, says):
    """The strip explained by glimpses; `says(canvas)` gives odds of one more, and its law."""
    canvas, going = jnp.zeros(PIXELS), jnp.ones((), bool)
    for i in range(GLIMPSES):
        odds, law = says(canvas)
        present = ctx.sample(f"present{i}", dist.Bernoulli(logits=jnp.where(going, odds, -30.0)))
        going = present == 1
        canvas = canvas + ctx.call(f"look{i}", LOOK, going, law)
    return canvas


@ppl.program
def model(ctx, strip):
    canvas = seen(ctx, lambda canvas: (ODDS, PRIOR))
    ctx.observe("strip", dist.Normal(canvas, NOISE), strip)


@ppl.program
def guide(ctx, params, strip):
    def says(canvas):
        x = jnp.concatenate([strip, strip - canvas])
        for weight, bias in params[:-1]:
            x = jax.nn.softplus(weight @ x + bias)
        out = params[-1][0] @ x + params[-1][1]
        scales = 0.02 + jax.nn.softplus(out[3:] - 1.0)
        return out[0], jnp.stack([out[1], scales[0], 1.0 + out[2], scales[1]])

    return seen(ctx, says)


@vi.objective
def elbo(ctx, params, strip):
    return vi.elbo(ctx, ppl.bind(guide, params, strip), ppl.Target(model, (strip,)))


@vi.objective
def iwelbo(ctx, params, strip):
    return vi.iwelbo(5)(ctx, ppl.bind(guide, params, strip), ppl.Target(model, (strip,)))


SCORE, LEAVE = vi.Score(vi.Running().after(-20.0)), vi.Score(vi.LeaveOneOut())
MEASURE, ALL = vi.MeasureValued(), vi.Enumerate()
NAMES = [f"present{i}" for i in range(GLIMPSES)]
# Objective, and the strategy of each glimpse's presence.
WAYS = {
    "score function": (elbo, (SCORE, SCORE, SCORE)),
    "measure-valued": (elbo, (MEASURE, MEASURE, MEASURE)),
    "enumeration": (elbo, (ALL, ALL, ALL)),
    "score function, last enumerated": (elbo, (SCORE, SCORE, ALL)),
    "IWELBO 5, score function": (iwelbo, (LEAVE, LEAVE, LEAVE)),
    "IWELBO 5, measure-valued": (iwelbo, (MEASURE, MEASURE, MEASURE)),
}


def batched(objective, strategies):
    """Value and gradient of the mean over strips, a function of (key, params, strips)."""
    one = vi.surrogate(objective, {"guide": dict(zip(NAMES, strategies, strict=True))})

    def mean(params, key, strips):
        keys = jax.random.split(key, len(strips))
        return jnp.mean(jax.vmap(lambda key, strip: one(key, params, strip))(keys, strips))

    def value_and_grad(key, params, strips):
        return jax.value_and_grad(mean)(params, key, strips)

    return value_and_grad


def network(key):
    sizes = (2 * PIXELS, HIDDEN, HIDDEN, 5)
    keys = jax.random.split(key, len(sizes) - 1)
    pairs = zip(keys, sizes[:-1], sizes[1:], strict=True)
    return [(jax.random.normal(k, (b, a)) / a**0.5, jnp.zeros(b)) for k, a, b in pairs]


@jax.jit
def pictures(keys):
    """Strips drawn from the model, and how many bumps each has."""

    def one(key):
        key, noise = jax.random.split(key)
        choices = PICTURE.simulate(key)
        many = sum(choices.choices[name] for name in NAMES)
        return choices.retval + NOISE * jax.random.normal(noise, (PIXELS,)), many

    return jax.vmap(one)(keys)


PICTURE = ppl.bind(ppl.program(lambda ctx: seen(ctx, lambda canvas: (ODDS, PRIOR))))


@jax.jit
def judged(key, params, strips, many):
    """Importance-weighted bound with 50 draws, nats; how often its best draw counts right."""

    def one(key, strip, many):
        looks = ppl.bind(guide, params, strip)
        choices = jax.vmap(lambda k: looks.simulate(k).choices)(jax.random.split(key, 50))
        log_w = jax.vmap(ppl.Target(model, (strip,)).log_density)(choices)
        log_w = log_w - jax.vmap(ppl.Target(looks).log_density)(choices)
        count = sum(choices[name] for name in NAMES)[jnp.argmax(log_w)]
        return jax.nn.logsumexp(log_w) - jnp.log(50.0), count == many

    bound, right = jax.vmap(one)(jax.random.split(key, len(strips)), strips, many)
    return jnp.mean(bound), jnp.mean(right)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15, help="chunks of steps, timed in turn")
    parser.add_argument("--picture")
    args = parser.parse_args()
    test = pictures(jax.random.split(jax.random.key(1), 1000))
    adam, each = optax.adam(1e-3), args.steps // args.rounds
    chunks, states, curves, spread = {}, {}, {name: [] for name in WAYS}, {}
    times, start = {name: [] for name in WAYS}, network(jax.random.key(0))
    for name, (objective, strategies) in WAYS.items():
        estimator = batched(objective, strategies)

        def chunk(carry, key, estimator=estimator):
            def step(carry, key):
                params, state = carry
                draw, go = jax.random.split(key)
                strips = pictures(jax.random.split(draw, args.batch))[0]
                _, slope = estimator(go, params, strips)
                change, state = adam.update(jax.tree.map(jnp.negative, slope), state)
                return (optax.apply_updates(params, change), state), None

            return jax.lax.scan(step, carry, jax.random.split(key, each))[0]

        carry = (start, adam.init(start))
        chunks[name] = jax.jit(chunk).lower(carry, jax.random.key(0)).compile()
        states[name] = carry
    rng = np.random.default_rng(0)
    with Others() as others:
        for i in range(args.rounds):
            for name in rng.permutation(list(WAYS)):
                key, held = jax.random.key(i), {}

                def go(name=name, key=key, held=held):
                    held["carry"] = chunks[name](states[name], key)
                    return held["carry"]

                times[name].append(seconds(go) / each)
                states[name] = held["carry"]
                bound, right = judged(jax.random.key(2), states[name][0], *test)
                curves[name].append((float(bound), float(right)))
    # The gradient's spread for all at the same, half-trained parameters.
    there = states["enumeration"][0]
    for name, (objective, strategies) in WAYS.items():
        strips, keys = test[0][: args.batch], jax.random.split(jax.random.key(3), 100)
        slopes = jax.jit(jax.vmap(batched(objective, strategies), (0, None, None)))(
            keys, there, strips
        )[1]
        flat = np.concatenate([np.reshape(x, (100, -1)) for x in jax.tree.leaves(slopes)], axis=1)
        spread[name] = np.sqrt(np.sum(np.var(flat, axis=0)))
    print(f"{args.steps} steps of {args.batch} strips; others had {others.share:.0%}\n")
    print("| presence | ms a step | gradient's sd | bound, nats | counted right |")
    print("|---|---:|---:|---:|---:|")
    for name in WAYS:
        ms, (bound, right) = 1e3 * np.median(times[name]), curves[name][-1]
        print(f"| {name} | {ms:.2f} | {spread[name]:.2f} | {bound:.2f} | {right:.1%} |")
    if args.picture:
        figure, axes = plt.subplots(1, 2, figsize=(10, 4))
        for name in WAYS:
            at_seconds = np.cumsum(times[name]) * each
            for axis, values in zip(axes, np.array(curves[name]).T, strict=True):
                axis.plot(at_seconds, values, ".-", label=name)
        axes[0].set(xlabel="seconds of training", ylabel="bound, nats")
        axes[1].set(xlabel="seconds of training", ylabel="counted right")
        axes[1].legend(fontsize=8)
        figure.tight_layout()
        figure.savefig(args.picture, dpi=120)


if __name__ == "__main__":
    main()
