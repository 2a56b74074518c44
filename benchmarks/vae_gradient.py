"""What does an objective as a program cost? The gradient of a VAE's ELBO, by hand and by NumPyro.

One step's value and gradient in all parameters of encoder and decoder, 784 pixels, 400 hidden
units, 10 latent ones, one draw an image. All sides are compiled before, blocked until the result
is there, and run in turn in an order drawn anew, with the same parameters, images and keys.

    python benchmarks/vae_gradient.py
    python benchmarks/vae_gradient.py --pairs 20 --batches 64 256
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import Trace_ELBO
from timing import Others, interval, paired

from feynkac import ppl
from feynkac.inference import vi

PIXELS, HIDDEN, LATENT = 784, 400, 10


def network(key, sizes):
    """Weights and biases of a perceptron."""
    keys = jax.random.split(key, len(sizes) - 1)
    shapes = zip(keys, sizes[:-1], sizes[1:], strict=True)
    return [(jax.random.normal(k, (a, b)) / np.sqrt(a), jnp.zeros(b)) for k, a, b in shapes]


def parameters(key):
    first, second = jax.random.split(key)
    return {
        "encoder": network(first, (PIXELS, HIDDEN, 2 * LATENT)),
        "decoder": network(second, (LATENT, HIDDEN, PIXELS)),
    }


def apply(layers, x):
    for weight, bias in layers[:-1]:
        x = jax.nn.softplus(x @ weight + bias[None])
    weight, bias = layers[-1]
    return x @ weight + bias[None]


def encode(params, images):
    out = apply(params["encoder"], images.astype(float))
    return out[:, :LATENT], jnp.exp(out[:, LATENT:])


def by_hand(key, params, images):
    """The ELBO as one would write it in JAX."""
    loc, scale = encode(params, images)
    noise = jax.random.normal(key, loc.shape)
    z = loc + scale * noise
    logits = apply(params["decoder"], z)
    log_x = jnp.sum(images.astype(float) * logits - jax.nn.softplus(logits))
    log_p = -0.5 * jnp.sum(z**2)
    log_q = -0.5 * jnp.sum(noise**2) - jnp.sum(jnp.log(scale))
    return log_x + log_p - log_q


@ppl.program
def decoder(ctx, params, images):
    z = ctx.sample("z", dist.Normal(jnp.zeros((len(images), LATENT)), 1.0))
    ctx.observe("x", dist.Bernoulli(logits=apply(params["decoder"], z)), images)


@ppl.program
def encoder(ctx, params, images):
    loc, scale = encode(params, images)
    ctx.sample("z", dist.Normal(loc, scale))


@vi.objective
def elbo(ctx, params, images):
    guide = ppl.bind(encoder, params, images)
    return vi.elbo(ctx, guide, ppl.Target(decoder, (params, images)))


def numpyro_model(params, images):
    shape = (len(images), LATENT)
    z = numpyro.sample("z", dist.Normal(jnp.zeros(shape), 1.0).to_event(2))
    logits = apply(params["decoder"], z)
    numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(2), obs=images)


def numpyro_guide(params, images):
    loc, scale = encode(params, images)
    numpyro.sample("z", dist.Normal(loc, scale).to_event(2))


def sides(params, images):
    """Compiled value and gradient of each side, a function of a key."""
    estimator, bound = vi.value_and_grad(elbo), Trace_ELBO()

    def numpyro_loss(params, key, images):
        # The gradient that `SVI.update` takes, without its optimizer.
        return -bound.loss(key, {}, numpyro_model, numpyro_guide, params, images)

    key, hand = jax.random.key(0), jax.value_and_grad(by_hand, argnums=1)
    hand = jax.jit(hand).lower(key, params, images).compile()
    ours = jax.jit(estimator).lower(key, params, images).compile()
    theirs = jax.jit(jax.value_and_grad(numpyro_loss)).lower(params, key, images).compile()
    return {
        "by hand": lambda key: hand(key, params, images),
        "feynkac": lambda key: ours(key, params, images),
        "NumPyro": lambda key: theirs(params, key, images),
    }


def row(params, n, pairs):
    """One line of the table."""
    images = jax.random.bernoulli(jax.random.key(n), 0.3, (n, PIXELS)).astype(jnp.int32)
    calls = sides(params, images)
    keys = list(jax.random.split(jax.random.key(1), pairs + 3))
    with Others() as others:
        times = paired(calls, pairs, keys)
    cells = []
    for name in calls:
        low, middle, high = 1e3 * np.quantile(times[name], (0.25, 0.5, 0.75))
        cells.append(f"{middle:.2f} ({low:.2f}-{high:.2f})")
    cells += [interval(times["feynkac"], times[side]) for side in ("by hand", "NumPyro")]
    return f"| {n} | {' | '.join(cells)} | {others.share:.0%} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--pairs", type=int, default=50)
    args = parser.parse_args()
    params = parameters(jax.random.key(0))
    print("Milliseconds: median (quartiles). Ratios: median of pairs [95 % interval].\n")
    print("| batch | by hand | feynkac | NumPyro | to by hand | to NumPyro | others |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for n in args.batches:
        print(row(params, n, args.pairs), flush=True)


if __name__ == "__main__":
    main()
