"""Four tasks of the simulation-based inference benchmark as programs, with their reference draws.

Lueckmann, Boelts, Greenberg, Goncalves and Macke (2021), "Benchmarking simulation-based inference",
appendix T; observations and 10,000 reference draws each come from the unpacked sbibm wheel.
"""

import csv
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints

from feynkac import ppl
from feynkac.models.amortized.encoders import plain_encoder, set_encoder


class Crescent(dist.Distribution):
    """About center + (1/4, 0): a radius N(0.1, 0.01), an angle in the right half."""

    support = constraints.real_vector
    arg_constraints = {"center": constraints.real_vector}

    def __init__(self, center, *, validate_args=None):
        self.center = center
        super().__init__((), (2,), validate_args=validate_args)

    def sample(self, key, sample_shape=()):
        key_angle, key_radius = jax.random.split(key)
        half = jnp.pi / 2
        angle = jax.random.uniform(key_angle, sample_shape, minval=-half, maxval=half)
        radius = 0.1 + 0.01 * jax.random.normal(key_radius, sample_shape)
        spot = jnp.stack([radius * jnp.cos(angle) + 0.25, radius * jnp.sin(angle)], axis=-1)
        return self.center + spot

    def log_prob(self, value, intermediates=None):
        off = value - self.center - jnp.asarray([0.25, 0.0])
        radius = jnp.sqrt(jnp.sum(off**2, axis=-1))
        inside = (off[..., 0] > 0) & (radius > 0)
        safe = jnp.where(inside, radius, 0.1)
        density = dist.Normal(0.1, 0.01).log_prob(safe) - jnp.log(jnp.pi * safe)
        return jnp.where(inside, density, -jnp.inf)


@ppl.program
def two_moons(ctx):
    t = ctx.sample("theta", dist.Uniform(-jnp.ones(2), jnp.ones(2)).to_event(1))
    center = jnp.stack([-jnp.abs(t[0] + t[1]), t[1] - t[0]]) / np.sqrt(2)
    ctx.sample("x", Crescent(center))


@ppl.program
def gaussian_linear(ctx):
    theta = ctx.sample("theta", dist.Normal(jnp.zeros(10), np.sqrt(0.1)).to_event(1))
    ctx.sample("x", dist.Normal(theta, np.sqrt(0.1)).to_event(1))


@ppl.program
def _point(ctx, mean, factor):
    ctx.sample("x", dist.MultivariateNormal(mean, scale_tril=factor))


@ppl.program
def slcp(ctx):
    t = ctx.sample("theta", dist.Uniform(-3 * jnp.ones(5), 3 * jnp.ones(5)).to_event(1))
    first, second, rho = t[2] ** 2, t[3] ** 2, jnp.tanh(t[4])
    a = jnp.sqrt(first**2 + 1e-6)
    b = rho * first * second / a
    rows = [jnp.stack([a, jnp.zeros(())]), jnp.stack([b, jnp.sqrt(second**2 + 1e-6 - b**2)])]
    factor = jnp.stack(rows)
    means = jnp.broadcast_to(t[:2], (4, 2))
    ctx.call("points", ppl.vmap(_point), means, jnp.broadcast_to(factor, (4, 2, 2)))


def epidemic(rates, days=17, times=10, step=0.25):
    """Infected shares every 17 days, from one in a million; Runge-Kutta of fourth order."""
    beta, gamma = rates[0], rates[1]

    def slope(u):
        new = beta * u[0] * u[1]
        return jnp.stack([-new, new - gamma * u[1]])

    def advance(u, _):
        k1 = slope(u)
        k2 = slope(u + 0.5 * step * k1)
        k3 = slope(u + 0.5 * step * k2)
        k4 = slope(u + step * k3)
        return u + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None

    def period(u, _):
        return jax.lax.scan(advance, u, length=round(days / step))[0], u[1]

    start = jnp.asarray([1 - 1e-6, 1e-6])
    return jax.lax.scan(period, start, length=times)[1]


@ppl.program
def sir(ctx):
    loc, scale = jnp.log(jnp.asarray([0.4, 0.125])), jnp.asarray([0.5, 0.2])
    rates = ctx.sample("theta", dist.LogNormal(loc, scale).to_event(1))
    share = jnp.clip(epidemic(rates), 0.0, 1.0)
    ctx.sample("x", dist.Binomial(1000, share).to_event(1))


@dataclasses.dataclass(frozen=True)
class Task:
    """A program, how its data are written, and how the network reads them."""

    program: ppl.Program
    observed: str
    data: Callable
    encoder: Callable = functools.partial(plain_encoder, width=64, outputs=32)


TASKS = {
    "two_moons": Task(two_moons, "x", lambda x: {"x": x}),
    "gaussian_linear": Task(gaussian_linear, "x", lambda x: {"x": x}),
    "slcp": Task(
        slcp,
        "points",
        lambda x: {"points": {"x": x.reshape(4, 2)}},
        functools.partial(set_encoder, width=64, outputs=64),
    ),
    "sir": Task(sir, "x", lambda x: {"x": x.astype(np.int32)}),
}


def numbers(path):
    """The rows of a csv file with a head, packed or not."""
    import bz2

    opened = bz2.open(path, "rt") if path.suffix == ".bz2" else path.open()
    with opened as file:
        rows = list(csv.reader(file))
    return np.asarray(rows[1:], np.float64)


def observation(wheel, task, i):
    """Data set i of the wheel, and its reference draws."""
    folder = Path(wheel) / "sbibm" / "tasks" / task / "files" / f"num_observation_{i}"
    reference = numbers(folder / "reference_posterior_samples.csv.bz2")
    return numbers(folder / "observation.csv")[0].astype(np.float32), reference
