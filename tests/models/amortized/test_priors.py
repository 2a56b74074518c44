"""Prior programs: moments in closed form, exact predictives against other ways to find them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac.models.amortized import priors


def draws(family, points, sets, seed=0):
    keys = jax.random.split(jax.random.key(seed), sets)
    run = jax.jit(jax.vmap(lambda key: family.program(points).simulate(key).choices))
    return {name: np.asarray(v, np.float64) for name, v in run(keys).items()}


def z_of_mean(values, expected):
    values = np.asarray(values, np.float64)
    return (values.mean(0) - expected) / (values.std(0, ddof=1) / np.sqrt(len(values)))


def test_gaussian_process_has_its_covariance():
    process = priors.GaussianProcess(0.3, 2.0, 0.1, priors.matern52, 2)
    made = draws(process, 3, 20_000)
    assert made["x"].shape == (20_000, 3, 2) and made["x"].min() >= 0 and made["x"].max() <= 1
    r = np.sqrt(5 * np.sum((made["x"][:, 0] - made["x"][:, 1]) ** 2, axis=1)) / 0.3
    correlation = (1 + r + r**2 / 3) * np.exp(-r)
    y = made["y"]
    assert abs(z_of_mean(y[:, 0] * y[:, 1] - 2 * correlation, 0.0)) < 4
    assert np.abs(z_of_mean(y**2, 2.1)).max() < 4


def test_gaussian_process_predictive_is_the_conditional_normal():
    process = priors.GaussianProcess(0.4, 1.5, 0.05)
    rng = np.random.default_rng(0)
    x, y, q = rng.uniform(size=(5, 1)), rng.normal(size=5), rng.uniform(size=(2, 1))
    mask = np.array([True, False, True, True, False])
    law = process.predictive(*(jnp.asarray(v, float) for v in (x, y, q)), jnp.asarray(mask))
    for i in range(2):
        points = np.concatenate([x[mask], q[i : i + 1]])
        covariance = 1.5 * np.exp(-0.5 * (points - points.T) ** 2 / 0.16) + 0.05 * np.eye(4)
        weights = np.linalg.solve(covariance[:3, :3], covariance[:3, 3])
        np.testing.assert_allclose(law.mean[i], weights @ y[mask], atol=1e-4)
        left = covariance[3, 3] - weights @ covariance[:3, 3]
        np.testing.assert_allclose(law.variance[i], left, rtol=1e-3)
    nothing = process.predictive(*(jnp.asarray(v, float) for v in (x, y, q)), jnp.zeros(5, bool))
    np.testing.assert_allclose(nothing.variance, 1.55, rtol=1e-5)


def test_hyperpriors_are_those_of_the_paper():
    made = draws(priors.HyperGaussianProcess(dim=1), 2, 20_000)
    assert abs(z_of_mean(made["lengthscale"], 3 / 6)) < 4
    assert abs(z_of_mean(made["scale"], 2 / 0.15)) < 4
    assert np.abs(z_of_mean(made["y"] ** 2 - made["scale"][:, None], 1e-4)).max() < 4
    assert "noise" in draws(priors.HyperGaussianProcess(noise=(1.1, 10.0)), 2, 2)


def test_linear_regression_is_ridge():
    family = priors.LinearRegression(3, 0.7, 0.4)
    made = draws(family, 2, 20_000)
    assert np.abs(z_of_mean(made["y"] ** 2, 3 * 0.49 + 0.16)).max() < 4
    rng = np.random.default_rng(1)
    x, y, q = rng.normal(size=(6, 3)), rng.normal(size=6), rng.normal(size=(2, 3))
    law = family.predictive(*(jnp.asarray(v, float) for v in (x, y, q)))
    ridge = np.linalg.solve(x.T @ x + (0.4 / 0.7) ** 2 * np.eye(3), x.T @ y)
    np.testing.assert_allclose(law.mean, q @ ridge, rtol=2e-4)
    covariance = np.linalg.inv(x.T @ x / 0.16 + np.eye(3) / 0.49)
    expected = np.einsum("md,de,me->m", q, covariance, q) + 0.16
    np.testing.assert_allclose(law.variance, expected, rtol=2e-4)


@pytest.mark.parametrize("family", [priors.coin(2.0, 1.0), priors.Bandit(3, 2.0, 1.0)])
def test_bandit_pulls_evenly_and_counts(family):
    made = draws(family, 3, 20_000)
    assert (made["x"].sum(-1) == 1).all()
    if family.arms > 1:
        assert np.abs(z_of_mean(made["x"][:, 0], 1 / family.arms)).max() < 4
    same = (made["x"][:, 0] * made["x"][:, 1]).sum(1) > 0
    both = made["y"][same, 0] * made["y"][same, 1]
    assert abs(z_of_mean(both, 2 / 3 * 3 / 4)) < 4  # E bias^2 of a Beta(2, 1)
    arms = jnp.eye(family.arms)
    x = jnp.concatenate([arms[:1]] * 3 + [arms[-1:]])
    y, mask = jnp.array([1, 1, 0, 1]), jnp.array([True, True, True, False])
    law = family.predictive(x, y, arms[:1], mask)
    np.testing.assert_allclose(law.probs[0, 1], (2 + 2) / (3 + 3), rtol=1e-6)


def brute_force(family, x, y, query):
    """Density of y = 0.3 at a query by the sum over all partitions of the points in time."""
    rate, scale, noise = (float(v) for v in (family.rate, family.scale, family.noise))

    def joint(times, values):
        order = np.argsort(times)
        t, v = times[order], values[order]
        total = 0.0
        for cuts in itertools.product([False, True], repeat=len(t) - 1):
            p = np.prod(
                [
                    1 - np.exp(-rate * g) if c else np.exp(-rate * g)
                    for c, g in zip(cuts, np.diff(t), strict=True)
                ]
            )
            label = np.concatenate([[0], np.cumsum(cuts)])
            covariance = scale**2 * (label[:, None] == label) + noise**2 * np.eye(len(t))
            _, log_det = np.linalg.slogdet(2 * np.pi * covariance)
            total += p * np.exp(-0.5 * log_det - 0.5 * v @ np.linalg.solve(covariance, v))
        return total

    times, values = np.append(x[:, 0], query), np.append(y, 0.3)
    return joint(times, values) / joint(x[:, 0], y)


def test_changepoints_sum_over_all_partitions():
    family = priors.Changepoints(2.0, 1.3, 0.4)
    rng = np.random.default_rng(2)
    x, y, q = rng.uniform(size=(5, 1)), rng.normal(size=5), rng.uniform(size=(3, 1))
    mask = np.array([True, True, False, True, True])
    law = family.predictive(*(jnp.asarray(v, float) for v in (x, y, q)), jnp.asarray(mask))
    expected = [brute_force(family, x[mask], y[mask], query[0]) for query in q]
    np.testing.assert_allclose(jnp.exp(law.log_prob(jnp.full(3, 0.3))), expected, rtol=1e-4)


def test_changepoints_stay_as_the_jumps_say():
    family = priors.Changepoints(2.0, 1.3, 0.4)
    made = draws(family, 4, 20_000)
    gap = np.abs(made["x"][:, 0, 0] - made["x"][:, 1, 0])
    product = made["y"][:, 0] * made["y"][:, 1]
    assert abs(z_of_mean(product - 1.69 * np.exp(-2.0 * gap), 0.0)) < 4
    assert np.abs(z_of_mean(made["y"] ** 2, 1.69 + 0.16)).max() < 4


def test_neural_network_has_the_variance_of_its_units():
    family = priors.NeuralNetwork(2, (5,), 1.5, 0.5, 0.3)
    made = draws(family, 2, 20_000)
    x, y = made["x"][:, 0], made["y"][:, 0]
    u, w = np.polynomial.hermite_e.hermegauss(40)
    spread = np.sqrt(1.5**2 / 2 * (x**2).sum(1) + 0.25)
    unit = np.tanh(spread[:, None] * u) ** 2 @ w / w.sum()
    assert abs(z_of_mean(y**2 - (1.5**2 * unit + 0.25 + 0.09), 0.0)) < 4


def test_structural_models_are_tables_with_labels():
    family = priors.StructuralModel(6, 2, layers=2, units=8)
    made = draws(family, 40, 100)
    x, y = made["x"], made["y"]
    assert np.isfinite(x).all() and set(np.unique(y)) == {0.0, 1.0}
    assert np.abs(y.mean(1) - made["share"]).max() <= 1 / 40 + 1e-6
    used = (np.abs(x).max(1) > 0).sum(1)
    assert (used <= made["used"]).all() and (made["used"] >= 2).all()
    assert np.abs(x.mean(1)).max() < 1e-4
    with pytest.raises(ValueError, match="more units"):
        priors.StructuralModel(50, units=4).program(3)
