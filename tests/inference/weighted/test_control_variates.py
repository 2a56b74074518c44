"""Several expectations from one sample, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac import ppl
from feynkac.inference.weighted import Gaussian, MultipleExpectations, sobol_indices
from feynkac.inference.weighted.mixture import minimize_variance
from feynkac.ppl import dist

KEY = jax.random.key(47)
TILTS = np.array([[1.1, 0.0], [0.0, 0.9], [-0.6, 0.6]])


@ppl.program
def normal(ctx):
    ctx.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))


def tilts(choices):
    return jnp.exp(jnp.asarray(TILTS, float) @ choices["x"])


def runs_of(algorithm, target, runs):
    """Values, errors and what was spent, over independent runs."""
    results = jax.jit(jax.vmap(lambda key: algorithm.run(key, target)))(jax.random.split(KEY, runs))
    scale = np.exp(np.asarray(results.log_scale, float))[:, None]
    return results, np.asarray(results.values) * scale, np.asarray(results.errors) * scale


@pytest.mark.slow
def test_exponential_tilts():
    """E[exp(a x)] = exp(a a / 2); the optimal densities are in the family."""
    exact = np.exp(0.5 * np.sum(TILTS**2, axis=1))
    algorithm = MultipleExpectations(tilts, 1500, defensive=0.1)
    results, values, errors = runs_of(algorithm, normal, 64)
    spread = values.std(0, ddof=1)
    assert (np.abs(values.mean(0) - exact) < 4 * spread / 8).all()
    # Its own standard errors are those of the estimates (the second moment of 64 runs).
    np.testing.assert_allclose(np.sqrt(np.mean(errors**2, 0)), spread, rtol=0.45)
    plain = np.sqrt((np.exp(2 * np.sum(TILTS**2, axis=1)) - exact**2) / 1000)
    assert (spread < 0.7 * plain).all() and spread[0] < 0.4 * plain[0]
    # It stops by its rule, not always at the most.
    adapted = np.asarray(results.adapted)
    assert adapted.min() >= 2 and adapted.max() <= 5 and len(set(adapted.tolist())) > 1
    np.testing.assert_array_equal(results.draws, (10 - adapted) * 150)
    np.testing.assert_allclose(np.asarray(results.mixture).sum(1), 1, rtol=1e-4)


@ppl.program
def conjugate(ctx):
    x = ctx.sample("x", dist.Normal(0.0, 1.0))
    ctx.sample("unused", dist.Uniform(0.0, 1.0))
    ctx.observe("y", dist.Normal(x, 0.5), 1.5)
    ctx.factor("shift", -200.0)


def moments(choices):
    """Evidence, first moment (of both signs) and a mean over a bounded site."""
    x = choices["x"]
    return jnp.stack([jnp.ones(()), x, choices["unused"]])


@pytest.mark.slow
def test_a_posterior_with_underflowing_evidence():
    """Integrals of gamma f: Z, Z E[x], Z E[u]; ratios are posterior means."""
    variance = 1 / (1 + 4)
    mean = variance * 4 * 1.5
    log_z = float(dist.Normal(0.0, np.sqrt(1.25)).log_prob(1.5)) - 200
    algorithm = MultipleExpectations(moments, 1000, Gaussian(diagonal=True), defensive=0.1)
    results, _, _ = runs_of(algorithm, conjugate, 200)
    relative = np.asarray(results.values) * np.exp(np.asarray(results.log_scale) - log_z)[:, None]
    error = relative.std(0, ddof=1) / np.sqrt(200)
    assert (np.abs(relative.mean(0) - np.array([1, mean, 0.5])) < 4 * error).all()
    one = jax.tree.map(lambda x: x[0], results)
    ratio, ratio_error = one.of(lambda v: v[1:] / v[0])
    assert (np.abs(ratio - np.array([mean, 0.5])) < 4 * ratio_error).all()
    assert (ratio_error < 0.2).all()


def ishigami(x):
    return jnp.sin(x[0]) + 7 * jnp.sin(x[1]) ** 2 + 0.1 * x[2] ** 4 * jnp.sin(x[0])


def closed_form(a=7.0, b=0.1):
    """Ishigami and Homma (1990)."""
    one = 0.5 * (1 + b * np.pi**4 / 5) ** 2
    two = a**2 / 8
    both = b**2 * np.pi**8 * (1 / 18 - 1 / 50)
    whole = one + two + both
    return np.array([one, two, 0]) / whole, np.array([one + both, two, both]) / whole, whole


@pytest.mark.slow
def test_sobol_indices():
    """The worked example: first-order and total indices of three inputs, from one sample."""
    inputs = dist.Uniform(-jnp.pi * jnp.ones(3), jnp.pi * jnp.ones(3))
    keys = jax.random.split(KEY, 16)
    run = jax.jit(jax.vmap(lambda key: sobol_indices(key, ishigami, inputs, 20_000, defensive=0.3)))
    s = run(keys)
    first, total, whole = closed_form()
    for got, error, want in (
        (s.first, s.first_errors, first),
        (s.total, s.total_errors, total),
        (s.mean[:, None], None, 3.5),
        (s.variance[:, None], None, whole),
    ):
        spread = np.asarray(got).std(0, ddof=1)
        assert (np.abs(np.asarray(got).mean(0) - want) < 4 * spread / 4).all()
        if error is not None:
            np.testing.assert_allclose(np.sqrt(np.mean(np.square(error), 0)), spread, rtol=0.8)
            assert (np.asarray(error) < 0.05).all()


def test_shares_minimize_the_variance():
    """The multiplicative iteration finds the minimum on the simplex, a corner included."""
    from scipy.optimize import minimize

    rng = np.random.default_rng(3)
    ratios, cost = rng.exponential(size=(50, 3)), rng.exponential(size=50)
    ratios[:, 2] *= 0.1
    base = np.full(50, 0.05)

    def loss(alpha):
        return np.sum(cost / (base + ratios @ alpha))

    simplex = {"type": "eq", "fun": lambda a: a.sum() - 1}
    best = minimize(loss, np.full(3, 1 / 3), bounds=[(0, 1)] * 3, constraints=[simplex], tol=1e-12)
    arrays = (jnp.asarray(a, float) for a in (cost, ratios, base))
    alpha = np.asarray(jax.jit(minimize_variance)(*arrays), np.float64)
    assert loss(alpha) < best.fun * (1 + 1e-4) and abs(alpha.sum() - 1) < 1e-5
    assert alpha[2] < 1e-3


@ppl.program
def discrete(ctx):
    ctx.sample("z", dist.Bernoulli(probs=0.5))


def test_errors_say_what_to_do():
    with pytest.raises(ppl.ProgramError, match="'z' is .*Gaussian densities"):
        MultipleExpectations(lambda c: jnp.ones(1), 1000).run(KEY, discrete)
    with pytest.raises(ppl.ProgramError, match="one float array"):
        MultipleExpectations(lambda c: c["x"][0], 1000).run(KEY, normal)
    with pytest.raises(ValueError, match="at least 100"):
        MultipleExpectations(tilts, 10)
    with pytest.raises(ValueError, match="batch of d"):
        sobol_indices(KEY, ishigami, dist.Normal(0.0, 1.0), 1000)
