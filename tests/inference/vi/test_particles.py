"""Stein and coin sampling: directions by brute force, moments, discrepancies, the bet's formula."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

from feynkac import ppl
from feynkac.inference.vi import particles

KEY = jax.random.key(0)
MEAN, COV = jnp.asarray([1.0, -0.5]), jnp.asarray([[1.0, 0.6], [0.6, 0.8]])


@ppl.program
def normal(ctx, mean, cov):
    ctx.sample("x", dist.MultivariateNormal(mean, cov))


TARGET = ppl.Target(normal, (MEAN, COV))


def log_p(x):
    return dist.MultivariateNormal(MEAN, COV).log_prob(x)


score = jax.grad(log_p)


def brute(kernel, h):
    """k(x, y), and the Stein kernel of the target, by automatic differentiation alone."""

    def k(x, y):
        return kernel.profile(jnp.sum((x - y) ** 2) / h)

    def stein(x, y):
        mixed = jax.jacfwd(jax.grad(k, 1), 0)(x, y)
        cross = score(x) @ jax.grad(k, 1)(x, y) + score(y) @ jax.grad(k, 0)(x, y)
        return score(x) @ score(y) * k(x, y) + cross + jnp.trace(mixed)

    return k, stein


@pytest.fixture(scope="module")
def draws():
    return jax.random.normal(KEY, (5, 2))


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [particles.RBF(), particles.IMQ(0.7)], ids=["rbf", "imq"])
def test_directions_and_discrepancy_are_those_of_the_definition(kernel, draws):
    sq = ((draws[:, None] - draws[None]) ** 2).sum(-1)
    pairs = sq[np.triu_indices(5, 1)]
    h = float(jnp.median(pairs) / np.log(6)) if kernel.bandwidth is None else 0.7
    k, stein = brute(kernel, h)

    @jax.jit
    def exact(x):
        def at(y):
            terms = jax.vmap(lambda a: k(a, y) * score(a) + jax.grad(k, 0)(a, y))(x)
            return jnp.mean(terms, 0)

        matrix = jax.vmap(lambda a: jax.vmap(lambda b: stein(a, b))(x))(x)
        return jax.vmap(at)(x), jnp.mean(matrix)

    found, scores = jax.jit(lambda x: particles.SVGD(kernel)(x, log_p))(draws)
    direction, squared = exact(draws)
    np.testing.assert_allclose(found, direction, rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(scores, jax.vmap(score)(draws), rtol=1e-5)
    ksd = particles.ksd({"x": draws}, TARGET, kernel)
    np.testing.assert_allclose(ksd**2, squared, rtol=2e-4)
    if kernel.bandwidth is not None:
        moved, _ = jax.jit(lambda x: particles.KSDDescent(kernel)(x, log_p))(draws)
        half = jax.jit(jax.grad(lambda x: 0.5 * exact(x)[1]))(draws)
        np.testing.assert_allclose(moved, -5 * half, rtol=1e-3, atol=1e-5)


def test_stein_kernel_has_mean_zero_under_the_target_alone():
    _, stein = brute(particles.IMQ(1.0), 1.0)
    keys = jax.random.split(KEY, 4000)

    @jax.jit
    def mean(shift):
        place = MEAN + shift * jnp.asarray([1.0, -1.0])
        noise = jax.vmap(lambda k: jax.random.normal(k, (2, 2)))(keys)
        pairs = noise @ jnp.linalg.cholesky(COV).T + place[None, None, :]
        values = jax.vmap(lambda p: stein(p[0], p[1]))(pairs)
        return values.mean() / (values.std() / np.sqrt(len(keys)))

    assert abs(mean(0.0)) < 4 < mean(0.5)


def test_mmd_of_equal_and_of_other_laws():
    x, y, z = (jax.random.normal(k, (200, 2)) for k in jax.random.split(KEY, 3))
    assert particles.mmd(x, x) < 1e-3
    assert particles.mmd(x, y) < 0.15 < particles.mmd({"x": x}, {"x": z + 1.0})


def coins(gradients):
    """The bets of Orabona and Tommasi, algorithm 1, from x_0 = 1 on."""
    x0 = x = np.ones_like(gradients[0])
    top = np.full_like(x0, 1e-8)
    total, size, reward = np.zeros_like(x0), np.zeros_like(x0), np.zeros_like(x0)
    path = []
    for g in gradients:
        top = np.maximum(top, np.abs(g))
        reward = np.maximum(reward + (x - x0) * g, 0)
        total, size = total + g, size + np.abs(g)
        x = x0 + total / (top * (size + top)) * (top + reward)
        path.append(x)
    return np.stack(path)


def test_coin_is_the_bet_of_the_paper():
    gradients = np.random.default_rng(1).normal(size=(6, 3))
    x = jnp.ones(3)
    coin = particles.coin()
    state = coin.init(x)
    for g, wanted in zip(gradients, coins(gradients), strict=True):
        updates, state = coin.update(jnp.asarray(-g, x.dtype), state, x)
        x = optax.apply_updates(x, updates)
        np.testing.assert_allclose(x, wanted, rtol=1e-4)


@pytest.mark.parametrize(
    "method",
    [
        particles.ParticleVI(40, 300),
        pytest.param(
            particles.ParticleVI(40, 300, optimizer=optax.adam(0.1)), marks=pytest.mark.slow
        ),
        pytest.param(
            particles.ParticleVI(40, 3000, particles.KSDDescent()),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["coin", "svgd", "coin ksdd"],
)
def test_swarms_have_the_moments_of_a_gaussian(method):
    """Closer to the target, by discrepancy, than any of 50 sets of as many exact draws."""
    start = {"x": jax.random.normal(KEY, (40, 2)) - 2.0}
    swarm = method.run(KEY, TARGET, init=start, every=150)
    mean = swarm.expectation(lambda c: c["x"])
    second = swarm.expectation(lambda c: jnp.outer(c["x"] - MEAN, c["x"] - MEAN))
    np.testing.assert_allclose(mean, MEAN, atol=0.05)
    np.testing.assert_allclose(second, COV, atol=0.2)
    assert bool(swarm.status) and swarm.ksd[-1] < 0.2 * swarm.ksd[0]
    noise = jax.random.normal(KEY, (50, 40, 2))
    exact = noise @ jnp.linalg.cholesky(COV).T + MEAN[None, None, :]
    of_draws = jax.vmap(lambda x: particles.ksd({"x": x}, TARGET))(exact)
    found = particles.ksd(swarm.choices, TARGET)
    assert found < of_draws.min() and np.isclose(found, swarm.ksd[-1], rtol=0.2)
    assert not hasattr(swarm, "log_evidence") and not hasattr(swarm, "log_weights")


def test_a_swarm_that_meets_nan_stays_where_it_was():
    @ppl.program
    def cliff(ctx):
        x = ctx.sample("x", dist.Gamma(2.0, 1.0))
        ctx.factor("edge", jnp.where(x > 3.0, jnp.nan, 2.0 * x))

    init = {"x": jnp.asarray([0.5, 1.0, 2.9])}
    swarm = particles.ParticleVI(3, 40, optimizer=optax.sgd(0.1)).run(KEY, cliff, init=init)
    assert not swarm.status and "not finite" in swarm.status.message
    assert jnp.all(jnp.isfinite(swarm.positions)) and len(swarm.ksd) == 40
    with pytest.raises(ValueError, match="init holds 3 particles"):
        particles.ParticleVI(4, 1).run(KEY, cliff, init=init)
