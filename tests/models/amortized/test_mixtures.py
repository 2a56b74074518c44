"""Mixtures of Gaussians: density, moments, exact updates and moves, bijections, EM."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import constraints
from numpyro.distributions.transforms import biject_to
from scipy import stats

from feynkac.models.amortized.mixtures import Mixture, gaussian
from feynkac.models.amortized.refit import LinearDynamics, SampledDynamics, refit, spread

K, D = 3, 2
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=K)
MEANS = RNG.normal(size=(K, D))
FACTORS = np.tril(RNG.normal(size=(K, D, D)), -1) + np.eye(D) * RNG.uniform(0.4, 1.2, (K, D, 1))
COVS = FACTORS @ FACTORS.transpose(0, 2, 1)
WEIGHTS = np.exp(LOGITS) / np.exp(LOGITS).sum()
MATRIX = np.array([[1.0, -0.5]])
NOISE = np.array([[0.3]])


def mixture():
    return Mixture(
        jnp.asarray(LOGITS, float), jnp.asarray(MEANS, float), jnp.asarray(FACTORS, float)
    )


def density(x, weights=WEIGHTS, means=MEANS, covs=COVS):
    """By SciPy."""
    parts = [
        w * stats.multivariate_normal(m, c).pdf(x)
        for w, m, c in zip(weights, means, covs, strict=True)
    ]
    return np.sum(parts, axis=0)


@pytest.fixture(scope="module")
def double():
    """What is compared to many digits, in one compiled call in double precision."""
    with jax.enable_x64(True):

        @jax.jit
        def run(q, grid, z, known):
            posterior, log_z = q.update(z, jnp.asarray(MATRIX), jnp.asarray(NOISE), 0.2)
            moved = q.moved(jnp.asarray([[1.0, 0.3], [0.0, 0.9]]), 0.1 * jnp.eye(2), 0.5)
            positive = q.through(biject_to(constraints.independent(constraints.positive, 1)))
            return {
                "log_prob": jax.vmap(q.log_prob)(grid),
                "loc": q.loc,
                "cov": q.cov,
                "posterior": jax.vmap(posterior.log_prob)(grid),
                "log_z": log_z,
                "moved": jax.vmap(moved.log_prob)(grid),
                "first": jax.vmap(q.first(1).log_prob)(grid[:, :1]),
                "given": jax.vmap(lambda x: q.given(known).log_prob(x))(grid[:, 1:]),
                "defended": jax.vmap(q.defended(0.3, 3.0).log_prob)(grid),
                "numpyro": jax.vmap(q.distribution.log_prob)(grid),
                "positive": jax.vmap(positive.log_prob)(jnp.exp(grid)),
            }

        grid = RNG.normal(size=(200, D)) * 2
        known, z = np.array([0.3]), np.array([0.7])
        out = run(mixture(), jnp.asarray(grid), jnp.asarray(z), jnp.asarray(known))
        assert out["loc"].dtype == jnp.float64
        return grid, z, known, {name: np.asarray(x) for name, x in out.items()}


def test_density_and_moments(double):
    grid, _, known, out = double
    np.testing.assert_allclose(out["log_prob"], np.log(density(grid)), atol=1e-11)
    np.testing.assert_allclose(out["numpyro"], out["log_prob"], atol=1e-11)
    wider = 0.7 * density(grid) + 0.3 * density(grid, covs=9 * COVS)
    np.testing.assert_allclose(out["defended"], np.log(wider), atol=1e-11)
    mean = WEIGHTS @ MEANS
    second = np.einsum("k,kij->ij", WEIGHTS, COVS + MEANS[:, :, None] * MEANS[:, None, :])
    np.testing.assert_allclose(out["loc"], mean, atol=1e-12)
    np.testing.assert_allclose(out["cov"], second - np.outer(mean, mean), atol=1e-12)
    np.testing.assert_allclose(
        out["first"], np.log(density(grid[:, :1], means=MEANS[:, :1], covs=COVS[:, :1, :1]))
    )
    joint = np.column_stack([np.full(len(grid), known[0]), grid[:, 1]])
    marginal = density(known[None], means=MEANS[:, :1], covs=COVS[:, :1, :1])
    np.testing.assert_allclose(out["given"], np.log(density(joint) / marginal), atol=1e-11)


def test_update_is_bayes_rule(double):
    """Prior times likelihood over evidence, the evidence by quadrature."""
    grid, z, _, out = double

    def likelihood(x):
        return stats.norm(x @ MATRIX[0] + 0.2, np.sqrt(NOISE[0, 0])).pdf(z[0])

    side = np.linspace(-14, 14, 1401)
    points = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    evidence = np.sum(density(points) * likelihood(points)) * (side[1] - side[0]) ** 2
    assert abs(out["log_z"] - np.log(evidence)) < 1e-10
    exact = np.log(density(grid) * likelihood(grid) / evidence)
    np.testing.assert_allclose(out["posterior"], exact, atol=1e-10)


def test_moved_is_the_law_of_a_linear_map(double):
    grid, _, _, out = double
    matrix = np.array([[1.0, 0.3], [0.0, 0.9]])
    exact = density(
        grid, means=MEANS @ matrix.T + 0.5, covs=matrix @ COVS @ matrix.T + 0.1 * np.eye(2)
    )
    np.testing.assert_allclose(out["moved"], np.log(exact), atol=1e-10)


def test_change_of_variables(double):
    grid, _, _, out = double
    np.testing.assert_allclose(out["positive"], out["log_prob"] - grid.sum(1), atol=1e-10)


@pytest.fixture(scope="module")
def drawn():
    """Draws, a fit to them and predicted mixtures, in one compiled call."""

    @jax.jit
    def run(key, q):
        keys = jax.random.split(key, 5)
        x = q.sample(keys[0], (4000,))
        matrix, noise = jnp.asarray([[1.0, 0.3], [0.0, 0.9]]), 0.1 * jnp.eye(2)

        def move(key, x):
            return matrix @ x + jnp.sqrt(0.1) * jax.random.normal(key, (2,))

        def log_density(y, x):
            return gaussian(matrix @ x, noise).log_prob(y)

        def leap(key, x):
            key_side, key_noise = jax.random.split(key)
            return move(key_noise, x) + jnp.where(jax.random.bernoulli(key_side), 2.0, -2.0)

        def log_leap(y, x):
            both = jnp.stack([log_density(y - 2.0, x), log_density(y + 2.0, x)])
            return jax.nn.logsumexp(both) - jnp.log(2.0)

        exact, none = LinearDynamics(matrix, noise)(keys[1], q)
        sides = [exact.means + 2.0, exact.means - 2.0]
        leapt = Mixture(
            jnp.tile(exact.logits, 2), jnp.concatenate(sides), jnp.tile(exact.factors, (2, 1, 1))
        )
        gaps, errors = [], []
        for right, dynamics in (
            (exact, SampledDynamics(move, log_density, draws=512)),
            (leapt, SampledDynamics(leap, log_leap, draws=512, sweeps=0)),
            (leapt, SampledDynamics(leap, draws=512, sweeps=40)),
        ):
            fitted, error = dynamics(keys[1], q)
            fresh = right.sample(keys[2], (4000,))
            gap = jax.vmap(right.log_prob)(fresh) - jax.vmap(fitted.log_prob)(fresh)
            gaps.append(jnp.mean(gap))
            errors.append(error)
        start = Mixture(jnp.zeros(3), q.means + 0.5, 1.5 * q.factors)
        fits = refit(x, start, 30), spread(keys[3], x, 4)
        scores = [jax.vmap(f.log_prob)(x) for f in (q, start, *fits)]
        return x, scores, none, gaps, errors

    return jax.tree.map(np.asarray, run(jax.random.key(1), mixture()))


def test_draws_have_the_moments(drawn):
    x = drawn[0]
    mean, cov = np.asarray(mixture().loc), np.asarray(mixture().cov)
    z = (x.mean(0) - mean) / np.sqrt(np.diag(cov) / len(x))
    assert np.abs(z).max() < 4
    outer = (x - mean)[:, :, None] * (x - mean)[:, None, :]
    z = (outer.mean(0) - cov) / (outer.std(0) / np.sqrt(len(x)))
    assert np.abs(z).max() < 4


def test_refit_reaches_the_likelihood_of_the_truth(drawn):
    """A maximum is above the truth by about half the number of parameters (17, and 23)."""
    truth, start, fitted, free = (s.sum() for s in drawn[1])
    assert start < truth - 100
    assert truth < fitted < truth + 40
    assert truth - 40 < free < truth + 60


def test_sampled_dynamics_measure_their_error(drawn):
    """Against the exact predicted mixtures; sweeps of EM help; NaN without a density."""
    _, _, none, gaps, errors = drawn
    assert none == 0 and np.isnan(errors[2])
    assert 0 < gaps[0] < 0.02 and abs(errors[0] - gaps[0]) < 0.05
    assert gaps[1] > 0.2 and abs(errors[1] / gaps[1] - 1) < 0.3
    assert gaps[2] < gaps[1]


def test_shapes_are_checked():
    with pytest.raises(Exception, match="ype-check"):
        Mixture(jnp.zeros(3), jnp.zeros((2, 2)), jnp.zeros((3, 2, 2)))
