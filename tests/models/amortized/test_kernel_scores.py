"""Regressions as features, against dense Gaussian-process regression, each point left out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from feynkac.models.amortized import PFN, KernelScores, Labels, priors
from feynkac.models.amortized.kernel_scores import LINEAR
from feynkac.models.amortized.priors.gaussian_process import matern52

KERNELS = ((LINEAR, 0.3), (0.7, 0.1))


def gram(kernel, a, b, smooth=True):
    scale, _ = kernel
    if scale == LINEAR:
        return 1 + a @ b.T / a.shape[1]
    r = np.sqrt(((a[:, None] - b[None]) ** 2).mean(-1)) / scale
    if smooth:
        return 1 + np.exp(-0.5 * r**2)
    return 1 + (1 + np.sqrt(5) * r + 5 * r**2 / 3) * np.exp(-np.sqrt(5) * r)


def regression(kernel, x, y, at, smooth=True):
    """Mean and standard deviation of a noisy value at one place, and the log evidence."""
    k = gram(kernel, x, x, smooth) + kernel[1] * np.eye(len(x))
    cross = gram(kernel, at[None], x, smooth)[0]
    own = gram(kernel, at[None], at[None], smooth)[0, 0] + kernel[1]
    mean = cross @ np.linalg.solve(k, y) if len(x) else 0.0
    variance = own - cross @ np.linalg.solve(k, cross) if len(x) else own
    return mean, np.sqrt(variance)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(6, 3)), rng.normal(size=(6, 2)), rng.normal(size=(4, 3))


def columns(values):
    """[points, kernels, numbers]: two means, log deviation, evidence."""
    return np.asarray(values, float).reshape(len(values), len(KERNELS), 4)


@pytest.mark.x64
@pytest.mark.parametrize("smooth", [True, False])
def test_queries_and_left_out_points_are_dense_regressions(data, smooth):
    x, y, queries = data
    scores = KernelScores(KERNELS) if smooth else KernelScores(KERNELS, matern52)
    mask = np.arange(6) < 5
    spoilt = np.where(mask[:, None], x, np.nan)  # what is masked does not matter
    solved, own = scores.fit(jnp.asarray(spoilt), jnp.asarray(y), jnp.asarray(mask))
    asked, own = columns(scores.read(solved, jnp.asarray(queries))), columns(own)
    x, y = x[:5], y[:5]
    for k, kernel in enumerate(KERNELS):
        covariance = gram(kernel, x, x, smooth) + kernel[1] * np.eye(5)
        law = stats.multivariate_normal(np.zeros(5), covariance)
        constant = 2.5 * np.log(2 * np.pi * kernel[1])
        evidence = (np.mean([law.logpdf(column) for column in y.T]) + constant) / 5
        for column in range(2):
            for i, at in enumerate(queries):
                mean, deviation = regression(kernel, x, y[:, column], at, smooth)
                expected = [mean, np.log(deviation), evidence]
                np.testing.assert_allclose(asked[i, k, [column, 2, 3]], expected, atol=2e-5)
            for i in range(5):
                rest = np.arange(5) != i
                mean, deviation = regression(kernel, x[rest], y[rest, column], x[i], smooth)
                expected = [mean, np.log(deviation), evidence]
                np.testing.assert_allclose(own[i, k, [column, 2, 3]], expected, atol=2e-5)


def test_no_points_are_the_prior_and_batches_are_one_by_one(data):
    x, y, queries = (jnp.asarray(v) for v in data)
    scores = KernelScores(KERNELS)
    solved, _ = scores.fit(x, y, jnp.zeros(6, bool))
    asked = columns(scores.read(solved, queries))
    np.testing.assert_allclose(asked[..., [0, 1, 3]], 0.0, atol=1e-6)
    prior = [
        regression(k, np.zeros((0, 3)), None, q)[1] for q in np.asarray(queries) for k in KERNELS
    ]
    np.testing.assert_allclose(asked[..., 2].ravel(), np.log(prior), rtol=1e-5)

    masks = jnp.arange(6)[None] < jnp.array([[2], [6]])
    batch = scores.fit(jnp.stack([x, x]), jnp.stack([y, y]), masks)
    for i in range(2):
        alone = scores.fit(x, y, masks[i])
        for a, b in zip(jax.tree.leaves(batch), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[i], b, atol=1e-6)


@pytest.mark.x64
def test_a_network_reads_them_and_answers_as_in_training(data):
    family = priors.StructuralModel(4)
    pfn = PFN(
        family.program(9), context=6, head=Labels(2), scores=KernelScores(KERNELS), width=16,
        layers=2, heads=2, draws=64, key=jax.random.key(0),
    )  # fmt: skip
    leaves, structure = jax.tree.flatten(pfn.net)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    pfn = pfn.with_net(jax.tree.unflatten(structure, leaves))
    choices = family.program(9).simulate(jax.random.key(2)).choices
    x, y, queries = choices["x"][:6], choices["y"][:6], choices["x"][6:]
    told = pfn.condition(x[:4], y[:4]).predict(queries)
    trained = pfn.answer(pfn.net, x, y, jnp.int32(4), queries)
    np.testing.assert_allclose(told.logits, trained.logits, atol=1e-5)
    shuffled = pfn.condition(x[3::-1], y[3::-1]).predict(queries)
    np.testing.assert_allclose(told.logits, shuffled.logits, atol=1e-4)
    other = pfn.condition(x[:4], 1 - y[:4]).predict(queries)
    assert jnp.abs(told.logits - other.logits).max() > 0.01


@pytest.mark.parametrize("kernels", [(), ((0.0, 1.0),), ((1.0, -0.1),)])
def test_kernels_that_are_none_are_refused(kernels):
    with pytest.raises(ValueError, match="both above 0"):
        KernelScores(kernels)
