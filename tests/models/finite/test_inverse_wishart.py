"""Closed forms against one another, draws and quadrature; the few-shot bound below the evidence."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from feynkac.models.finite.inverse_wishart import NormalInverseWishart, few_shot

LAW = NormalInverseWishart([0.5, -1.0], 2.0, [[2.0, 0.4], [0.4, 1.5]], 6.0)


def test_evidence_is_the_product_of_students_t():
    xs = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    law, total = LAW, 0.0
    for x in xs:
        df = float(law.freedom) - 1
        shape = np.asarray(law.scale) * (float(law.count) + 1) / (float(law.count) * df)
        total += stats.multivariate_t(np.asarray(law.mean), shape, df).logpdf(x)
        law = law.posterior(jnp.asarray(x)[None])
    assert abs(LAW.log_evidence(jnp.asarray(xs)) - total) < 1e-3
    whole = LAW.posterior(jnp.asarray(xs))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(law), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)


def test_draws_expectations_and_divergence():
    other = NormalInverseWishart([0.0, 0.0], 1.0, [[1.0, 0.0], [0.0, 1.0]], 5.0)

    def one(key):
        mu, sigma = LAW.sample(key)
        inverse = jnp.linalg.inv(sigma)
        x = jnp.array([1.0, 0.5])
        log_p = -0.5 * (x - mu) @ inverse @ (x - mu) - 0.5 * jnp.linalg.slogdet(sigma)[1]

        def log_density(law):
            d = 2
            log_det = jnp.linalg.slogdet(inverse)[1]
            gap = mu - law.mean
            return (
                0.5 * (law.freedom + d + 2) * log_det
                - 0.5 * jnp.sum(inverse * law.scale)
                - 0.5 * law.count * gap @ inverse @ gap
                - law.log_normalizer()
            )

        return inverse, log_p - jnp.log(2 * jnp.pi), log_density(LAW) - log_density(other)

    n = 20_000
    draws = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), n))
    x = jnp.array([1.0, 0.5])
    wanted = (
        LAW.precision(),
        LAW.expected_log_density(x, jnp.zeros((2, 2))),
        LAW.kl(other),
    )
    for drawn, value in zip(draws, wanted, strict=True):
        drawn = np.asarray(drawn, np.float64)
        error = drawn.std(0) / np.sqrt(n)
        assert (np.abs(drawn.mean(0) - np.asarray(value)) < 4 * error).all()


def test_few_shot_bound_and_predictions():
    """In one dimension the evidence is an integral over (mu, Sigma): the bound stays below it."""
    prior = NormalInverseWishart([0.0], 0.5, [[2.0]], 4.0)
    generator = np.random.default_rng(1)
    theta = 1.5 + 0.7 * generator.normal(size=6)
    x = generator.normal(size=(6, 4, 1)).astype(np.float32)
    noise = 0.3
    y = (x[..., 0] * theta[:, None] + noise * generator.normal(size=(6, 4))).astype(np.float32)
    learned = few_shot(prior, jnp.asarray(x), jnp.asarray(y), noise, rounds=60)
    assert (np.diff(learned.bound) > -1e-3).all()

    mu, log_s = np.meshgrid(np.linspace(-6, 8, 801), np.linspace(-4, 6, 801), indexing="ij")
    s = np.exp(log_s)
    log_w = stats.invgamma.logpdf(s, 2.0, scale=1.0) + log_s
    log_w += stats.norm.logpdf(mu, 0, np.sqrt(s / 0.5))
    for a, b in zip(x[..., 0].astype(float), y.astype(float), strict=True):
        precision = (a @ a) / noise**2
        estimate = (a @ b) / noise**2 / precision
        rest = stats.norm.logpdf(b, 0, noise).sum() + 0.5 * precision * estimate**2
        rest += 0.5 * np.log(2 * np.pi / precision)
        log_w += rest + stats.norm.logpdf(estimate, mu, np.sqrt(s + 1 / precision))
    cell = (14 / 800) * (10 / 800)
    log_z = np.log(np.exp(log_w - log_w.max()).sum() * cell) + log_w.max()
    assert learned.bound[-1] < log_z < learned.bound[-1] + 0.5
    posterior_mean = (np.exp(log_w - log_w.max()) * mu).sum() / np.exp(log_w - log_w.max()).sum()
    assert abs(learned.posterior.mean[0] - posterior_mean) < 0.1
    # A new task: with no examples the global mean, with many its own least squares.
    none, _ = learned.adapt(jnp.zeros((0, 1)), jnp.zeros(0))
    np.testing.assert_allclose(none, learned.posterior.mean, rtol=1e-4)
    many = jnp.linspace(-3, 3, 200)[:, None]
    mean, variance = learned.predict(many, -2 * many[:, 0], jnp.array([[1.0]]))
    assert abs(mean[0] + 2) < 0.01 and abs(variance[0] - noise**2) < 0.01
