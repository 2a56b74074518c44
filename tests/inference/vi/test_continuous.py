"""Continuous and countable sites against expectations in closed form."""

import jax
import jax.numpy as jnp
import pytest
from oracles.unbiased import worst_z

from feynkac import ppl
from feynkac.inference import vi
from feynkac.ppl import dist

PARAMS = {
    "loc": jnp.array([0.4, 0.0]),  # a zero is no sign of what is impossible
    "scale": jnp.array([0.7, 1.2]),
    "rate": jnp.array(1.5),
    "concentration": jnp.array(2.5),
    "poisson": jnp.array(1.3),
}


@ppl.program
def guide(ctx, p):
    ctx.sample("x", dist.Normal(p["loc"], p["scale"]))
    ctx.sample("g", dist.Gamma(p["concentration"], p["rate"]))
    ctx.sample("e", dist.Exponential(p["rate"]))
    ctx.sample("n", dist.Poisson(p["poisson"]))


@vi.objective
def objective(ctx, params):
    draws, _ = ctx.draw("guide", guide, params)
    x, n = draws["x"], draws["n"].astype(float)
    return (x[0] ** 2 + x[0] * x[1]) * (1 + 0.3 * draws["g"] ** 2) + draws["e"] * n**2 + x[1] ** 3


def exact(p):
    """By the moments of independent draws."""
    m, s, rate, k, lam = p["loc"], p["scale"], p["rate"], p["concentration"], p["poisson"]
    gamma = 1 + 0.3 * k * (k + 1) / rate**2
    cube = m[1] ** 3 + 3 * m[1] * s[1] ** 2
    return (m[0] ** 2 + s[0] ** 2 + m[0] * m[1]) * gamma + (lam + lam**2) / rate + cube


def z_of(strategies, **options):
    truth = jax.value_and_grad(exact)(PARAMS)
    estimator = vi.value_and_grad(objective, strategies, **options)
    return worst_z(estimator, jax.random.key(3), 8_000, truth, PARAMS)


@pytest.mark.slow
def test_measure_valued_and_reparameterized():
    """The gamma draw carries implicit gradients; the others are measure-valued."""
    measured = {name: vi.MeasureValued() for name in ("x", "e", "n")}
    assert z_of({"guide": measured}) < 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategies",
    [vi.MeasureValued(), vi.Score(vi.LeaveOneOut())],
    ids=["measures", "scores"],
)
def test_each_strategy(strategies):
    assert z_of(strategies, samples=2) < 4
