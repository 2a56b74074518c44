"""Meta-priors of the Distribution Transformer's benchmark, with their exact answers."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve

from feynkac import ppl
from feynkac.models.amortized.meta_prior import meta_prior
from feynkac.models.amortized.mixtures import Mixture
from feynkac.ppl import dist

# Experiment 4.1: x ~ InverseGamma(a, b), one z ~ N(0, x); a, b themselves inverse gamma.

META = {"wide": (4.0, 6.0), "narrow": (10_000.0, 20_000.0), "shifted": (24.0, 6.0)}


@ppl.program
def variance(ctx, shape, rate):
    a = ctx.sample("a", dist.InverseGamma(shape, rate))
    b = ctx.sample("b", dist.InverseGamma(shape, rate))
    x = ctx.sample("x", dist.InverseGamma(a, b))
    z = ctx.sample("z", dist.Normal(0.0, jnp.sqrt(x)))
    return {"a": a, "b": b}, {"z": z[None]}


def log_both(prior):
    return jnp.log(jnp.stack(jax.tree.leaves(prior)))


def size_of(source, z):
    """Only z^2 tells of a variance: its log, floored smoothly, and log(1 + z^2)."""
    return jnp.stack([jnp.log(z**2 + 1e-4), jnp.log1p(z**2), jnp.arcsinh(jnp.abs(z))])


def inverse_gamma(which):
    program = ppl.bind(variance, *META[which])
    return meta_prior(program, ["x"], prior_features=log_both, data_features=size_of)


# Gaussian-mixture priors of any place, width and number of modes; z = H x + N(0, R).

SENSORS = {1: (np.eye(1), 0.5 * np.eye(1)), 2: (np.array([[1.0, 0.0]]), 0.5 * np.eye(1))}


def sensor(d):
    return tuple(jnp.asarray(x, jnp.float32) for x in SENSORS[d])


def mixture(d, k):
    matrix, noise = sensor(d)
    lower = d * (d - 1) // 2

    @ppl.program
    def program(ctx):
        logits = ctx.sample("logits", dist.Normal(0.0, 1.0).expand([k]).to_event(1))
        centre = ctx.sample("centre", dist.Normal(0.0, 2.0).expand([d]).to_event(1))
        reach = ctx.sample("reach", dist.LogNormal(0.0, 0.8))
        places = ctx.sample("places", dist.Normal(0.0, 1.0).expand([k, d]).to_event(2))
        widths = ctx.sample("widths", dist.LogNormal(-0.4, 0.5).expand([k, d]).to_event(2))
        tilts = ctx.sample("tilts", dist.Normal(0.0, 0.4).expand([k, lower]).to_event(2))
        factors = widths[:, :, None] * jnp.eye(d)[None]
        factors = factors.at[:, *np.tril_indices(d, -1)].set(tilts)
        prior = Mixture(logits, centre[None] + reach * places, factors)
        x = ctx.sample("x", prior.distribution)
        root = jnp.linalg.cholesky(noise)
        z = ctx.sample("z", dist.MultivariateNormal(matrix @ x, scale_tril=root))
        return prior, {"z": z[None]}

    return meta_prior(program, ["x"])


# A Gaussian process of 5 inputs with an unknown lengthscale: five points, one query.

DIMENSION, POINTS, JITTER = 5, 5, 0.01


def kernel(x, y, lengthscale):
    square = jnp.sum((x[:, None] - y[None]) ** 2, -1)
    return jnp.exp(-0.5 * square / lengthscale**2)


def predictive(lengthscale, x, y, at):
    """Mean and variance of the noisy value at a query [D]."""
    gram = kernel(x, x, lengthscale) + JITTER * jnp.eye(len(x))
    cross = kernel(x, at[None], lengthscale)[:, 0]
    factor = jnp.linalg.cholesky(gram)
    solved = cho_solve((factor, True), cross)
    return solved @ y, 1 + JITTER - solved @ cross


@ppl.program
def process(ctx):
    alpha = ctx.sample("alpha", dist.Uniform(100.0, 105.0))
    beta = ctx.sample("beta", dist.Uniform(100.0, 700.0))
    lengthscale = ctx.sample("lengthscale", dist.InverseGamma(alpha, beta))
    cube = dist.Uniform(0.0, 5.0).expand([POINTS + 1, DIMENSION]).to_event(2)
    x = ctx.sample("inputs", cube)
    gram = kernel(x[:-1], x[:-1], lengthscale) + JITTER * jnp.eye(POINTS)
    y = ctx.sample("outputs", dist.MultivariateNormal(jnp.zeros(POINTS), gram))
    mean, variance = predictive(lengthscale, x[:-1], y, x[-1])
    ctx.sample("query", dist.Normal(mean, jnp.sqrt(variance)))
    pairs = jnp.concatenate([x[:-1], y[:, None]], axis=1)
    return {"alpha": alpha, "beta": beta}, {"pairs": pairs, "query": x[-1:]}


def place_and_scale(source, row):
    """Distances matter more than places: inputs about the middle of the cube."""
    return jnp.concatenate([row[:DIMENSION] - 2.5, row[DIMENSION:]])


def gaussian_process(latent):
    return meta_prior(process, [latent], prior_features=log_both, data_features=place_and_scale)


# A qubit with Hamiltonian D sx + (1 - D) sz, ten binary measurements of sz at known times. The
# state is prepared with noise N(0, 0.01) in each real amplitude and renormalised, the clock is off
# by N(0, 0.0025); given D both average out to a Bernoulli law in closed form.

MEASUREMENTS, STATE_NOISE, CLOCK = 10, 0.01, 0.0025


def prepared():
    """Mean of sz after noisy preparation of |0>, by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    a, b, c, e = np.meshgrid(*[np.sqrt(STATE_NOISE) * nodes] * 4, indexing="ij")
    w = np.einsum("i,j,k,l->ijkl", *[weights / weights.sum()] * 4)
    up, down = (1 + a) ** 2 + b**2, c**2 + e**2
    return float((w * (up - down) / (up + down)).sum())


PREPARED = prepared()


def probability_up(d, t):
    """The Bloch vector turns about (d, 0, 1 - d) / r by the angle 2 r t."""
    square = d**2 + (1 - d) ** 2
    axis = (1 - d) ** 2 / square
    turned = jnp.cos(2 * jnp.sqrt(square) * t) * jnp.exp(-2 * square * CLOCK)
    return 0.5 + 0.5 * PREPARED * (axis + (1 - axis) * turned)


@ppl.program
def qubit(ctx):
    alpha = ctx.sample("alpha", dist.InverseGamma(4.0, 6.0))
    beta = ctx.sample("beta", dist.InverseGamma(4.0, 6.0))
    d = ctx.sample("d", dist.Beta(alpha, beta))
    times = ctx.sample("times", dist.Uniform(0.0, 3.0).expand([MEASUREMENTS]).to_event(1))
    up = ctx.sample("up", dist.Bernoulli(probability_up(d, times)).to_event(1))
    rows = jnp.stack([times, 2.0 * up.astype(times.dtype) - 1.0], axis=1)
    return {"alpha": alpha, "beta": beta}, {"measured": rows}


def waves(source, row):
    """Time and sign, and sines of the time with the sign."""
    t, sign = row
    angles = t * jnp.array([1.0, 2.0, 3.0])
    both = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)])
    return jnp.concatenate([row, both, sign * both])


def quantum():
    return meta_prior(qubit, ["d"], prior_features=log_both, data_features=waves)
