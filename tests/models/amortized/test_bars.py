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


def test_borders_have_half_the_density_and_half_its_cube_root():
    draws = np.random.default_rng(0).normal(size=1_000_000)
    borders = np.asarray(borders_of(draws, 400), np.float64)
    wide = stats.truncnorm(*np.array([draws.min(), draws.max()]) / 3**0.5, scale=3**0.5)
    share = (stats.norm.cdf(borders) + wide.cdf(borders)) / 2
    np.testing.assert_allclose(share, np.linspace(0, 1, 401), atol=0.006)


def test_borders_lose_little_of_a_narrow_answer():
    """Beside quantiles alone, in the mean over a prior ten times as wide."""
    draws = np.random.default_rng(0).normal(size=100_000)
    loc = jnp.asarray(np.random.default_rng(1).normal(size=2000), float)
    scale = jnp.full(2000, 0.1)

    def loss(borders):
        bars = Bars(borders, log_masses(loc, scale, borders))
        nodes, weights = np.polynomial.hermite_e.hermegauss(40)
        z = loc[None] + scale[None] * jnp.asarray(nodes, float)[:, None]
        normal = stats.norm.logpdf(nodes)[:, None] - np.log(0.1)
        gaps = np.average(normal - np.asarray(bars.log_prob(z)), axis=0, weights=weights)
        return gaps.mean()

    quantiles = jnp.asarray(np.quantile(draws, np.linspace(0, 1, 301)), float)
    assert loss(borders_of(draws, 300)) < loss(quantiles) / 4


def test_borders_refuse_atoms_and_infinities():
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


def test_a_head_starts_at_the_prior_and_its_smooth_part_is_a_student_law():
    draws = 3.0 + 2.0 * np.random.default_rng(1).normal(size=(64, 1000))
    head = Riemann(200).fitted(jnp.asarray(draws, float))
    np.testing.assert_allclose([head.loc, head.scale], [3.0, 2.0], atol=0.05)
    widths = jnp.log(jnp.diff(head.borders))
    out = jnp.concatenate([widths, jnp.array([0.5, -1.0, np.log(7.0)])])
    expected = stats.t(8, head.loc + 0.5 * head.scale, head.scale / np.e)
    y = jnp.linspace(2.0, 6.0, 9)
    start = jnp.array([0.2, 9.0]), jnp.array([-0.4, 9.0])  # of the number; then of its arcsinh
    from_start = out.at[-3].add(-0.2).at[-2].add(0.4)
    for law in (head.law(out, jnp.array(True)), head.law(from_start, jnp.array(True), start)):
        np.testing.assert_allclose(jnp.exp(law.log_prob(y)), expected.pdf(y), atol=0.02)
        np.testing.assert_allclose(law.cdf(y), expected.cdf(y), atol=0.005)
    narrow = out.at[-2].set(-9.0).at[-1].set(50.0)  # about normal, and sharper than a bar
    assert jnp.isfinite(head.law(narrow, jnp.array(True)).log_prob(100.0))


def test_labels_are_checked_and_classes_are_a_distribution():
    with pytest.raises(ValueError, match="2 classes"):
        Labels(2).fitted(jnp.array([[0, 2]]))
    law = jax.jit(lambda x: Classes(x, jnp.array([True, False])))(jnp.zeros((2, 4)))
    np.testing.assert_allclose(law.log_prob(jnp.array([0, 3])), -np.log(4), rtol=1e-6)
    assert law.valid.tolist() == [True, False]
