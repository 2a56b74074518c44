"""The Riemann distribution against quadrature, and the head that makes it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from feynkac.models.amortized import Bars, log_masses
from feynkac.models.amortized.bars import HALF, borders_of
from feynkac.models.amortized.heads import Classes, Labels, Riemann

BORDERS = jnp.array([-2.0, -1.2, -0.3, 0.1, 0.7, 1.9])
LAW = Bars(BORDERS, jnp.array([[0.3, -1.0, 0.8, 0.0, 0.5], [-3.0, 2.0, 0.0, 1.0, -1.0]]))


def grid():
    """Points of a fine grid that has no border inside a cell, and the density there."""
    inner = np.asarray(BORDERS[1:-1], float)
    ends = np.concatenate([[-14.0], inner, [20.0]])
    parts = [np.linspace(a, b, 40_001) for a, b in zip(ends[:-1], ends[1:], strict=True)]
    middles = [(p[1:] + p[:-1]) / 2 for p in parts]
    y, width = np.concatenate(middles), np.concatenate([np.diff(p) for p in parts])
    density = jax.jit(lambda y: jnp.exp(LAW.log_prob(y[:, None])))(jnp.asarray(y, float))
    return y, width, np.asarray(density, np.float64).T


def test_moments_mass_and_entropy_agree_with_quadrature():
    y, width, density = grid()
    mass = density * width
    np.testing.assert_allclose(mass.sum(1), 1.0, rtol=1e-5)
    mean = mass @ y
    np.testing.assert_allclose(LAW.mean, mean, atol=1e-4)
    variance = (mass * (y - mean[:, None]) ** 2).sum(1)
    np.testing.assert_allclose(LAW.variance, variance, rtol=1e-3)
    entropy = -(mass * np.log(np.maximum(density, 1e-300))).sum(1)
    np.testing.assert_allclose(LAW.entropy(), entropy, rtol=1e-4)


def test_cdf_is_the_integral_and_icdf_its_inverse():
    y, width, density = grid()
    below = np.cumsum(density * width, axis=1) - density * width / 2
    some = np.linspace(0, len(y) - 1, 200).astype(int)
    points = jnp.asarray(y[some], float)
    cdf, back = jax.jit(lambda y: (LAW.cdf(y[:, None]), LAW.icdf(LAW.cdf(y[:, None]))))(points)
    np.testing.assert_allclose(cdf.T, below[:, some], atol=2e-5)
    for row in range(2):
        sure = (below[row, some] > 1e-3) & (below[row, some] < 1 - 1e-3)
        np.testing.assert_allclose(back[sure, row], y[some][sure], atol=2e-3)
    assert (LAW.icdf(0.0) == -jnp.inf).all() and (LAW.icdf(1.0) == jnp.inf).all()


def test_outer_bars_are_half_normals_with_half_their_mass_inside():
    inside = LAW.cdf(BORDERS[0]) / LAW.probs[:, 0]
    np.testing.assert_allclose(inside, 0.5, rtol=1e-5)
    beyond = (1 - LAW.cdf(BORDERS[-1])) / LAW.probs[:, -1]
    np.testing.assert_allclose(beyond, 0.5, rtol=1e-4)
    scale = float(BORDERS[-1] - BORDERS[-2]) / HALF
    expected = stats.halfnorm(float(BORDERS[-2]), scale).logpdf(5.0)
    np.testing.assert_allclose(
        LAW.log_prob(5.0), expected + np.asarray(LAW.log_probs[:, -1]), rtol=1e-5
    )


def test_draws_follow_the_law():
    draws = np.asarray(LAW.sample(jax.random.key(0), (20_000,)))
    assert draws.shape == (20_000, 2)
    z = (draws.mean(0) - np.asarray(LAW.mean)) / np.sqrt(np.asarray(LAW.variance) / len(draws))
    assert np.abs(z).max() < 4
    u = np.asarray(LAW.cdf(jnp.asarray(draws)))
    assert min(stats.kstest(u[:, i], "uniform").pvalue for i in range(2)) > 1e-4


def test_nan_stays_nan_and_shapes_are_checked():
    assert jnp.isnan(LAW.log_prob(jnp.nan)).all()
    with pytest.raises(ValueError, match="need logits"):
        Bars(BORDERS, jnp.zeros(4))


def test_borders_are_quantiles_and_atoms_are_refused():
    draws = np.random.default_rng(0).normal(size=(100, 1000))
    borders = borders_of(draws, 10)
    counts = np.histogram(draws, np.asarray(borders, np.float64))[0]
    np.testing.assert_allclose(counts, 10_000, atol=20)
    with pytest.raises(ValueError, match="head of classes"):
        borders_of(np.ones(1000), 10)
    with pytest.raises(ValueError, match="not finite"):
        borders_of(np.array([0.0, np.inf]), 10)


def test_masses_of_a_normal_law():
    loc, scale = jnp.array([0.0, 3.0, -30.0]), jnp.array([1.0, 0.1, 2.0])
    masses = np.asarray(log_masses(loc, scale, BORDERS), np.float64)
    edges = np.concatenate([[-np.inf], np.asarray(BORDERS[1:-1], np.float64), [np.inf]])
    law = stats.norm(np.asarray(loc)[:, None], np.asarray(scale)[:, None])
    np.testing.assert_allclose(np.exp(masses), np.diff(law.cdf(edges)), atol=2e-6)
    far = stats.norm(-30, 2).logsf(BORDERS[1]) - masses[2, 1]  # all of it lies at the border
    assert abs(far) < 0.01


def test_a_head_starts_at_the_prior_and_its_normal_part_is_a_normal_law():
    draws = 3.0 + 2.0 * np.random.default_rng(1).normal(size=(64, 1000))
    head = Riemann(200).fitted(jnp.asarray(draws, float))
    np.testing.assert_allclose([head.loc, head.scale], [3.0, 2.0], atol=0.05)
    widths = jnp.log(jnp.diff(head.borders))
    out = jnp.concatenate([widths, jnp.array([0.5, -1.0])])  # mean 4, scale 2 / e
    law = head.law(out, jnp.array(True))
    assert abs(float(law.mean) - 4.0) < 0.05
    assert abs(float(jnp.sqrt(law.variance)) - 2 / np.e) < 0.05
    assert jnp.isfinite(head.law(out.at[-1].set(-9.0), jnp.array(True)).log_prob(100.0))


def test_labels_are_checked_and_classes_are_a_distribution():
    with pytest.raises(ValueError, match="2 classes"):
        Labels(2).fitted(jnp.array([[0, 2]]))
    law = jax.jit(lambda x: Classes(x, jnp.array([True, False])))(jnp.zeros((2, 4)))
    np.testing.assert_allclose(law.log_prob(jnp.array([0, 3])), -np.log(4), rtol=1e-6)
    assert law.valid.tolist() == [True, False]
