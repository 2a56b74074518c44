"""A conjugate model, guides that stand for networks, and proper weighting of corrected answers."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from feynkac import ppl

KEY = jax.random.key(0)


@ppl.program
def conjugate(ctx):
    m = ctx.sample("m", dist.Normal(0.0, 1.0))
    ctx.sample("y", dist.Normal(m, 0.5))


Y = 1.0
TARGET = ppl.Target(conjugate, (), {"y": jnp.asarray(Y)})
LOG_Z = -0.5 * Y**2 / 1.25 - 0.5 * np.log(2 * np.pi * 1.25)
MEAN, VARIANCE = 0.8, 0.2


def network(loc, scale):
    """A guide that stands for a network with this law."""

    @ppl.program
    def guide(ctx):
        ctx.sample("m", dist.Normal(loc, scale))

    return guide


def estimates(run):
    """Z-hat / Z, and Z-hat / Z times the mean and second moment, by weight."""
    weights = np.exp(np.asarray(run.log_weights, np.float64) - LOG_Z)
    m = np.asarray(run.choices["m"], np.float64)
    return np.array([weights.mean(), (weights * m).mean(), (weights * m**2).mean()])


EXACT = np.array([1.0, MEAN, MEAN**2 + VARIANCE])


def z_scores(rows):
    rows = np.asarray(rows)
    return (rows.mean(axis=0) - EXACT) / (rows.std(axis=0, ddof=1) / np.sqrt(len(rows)))
