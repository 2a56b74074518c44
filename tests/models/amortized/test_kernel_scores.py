"""Regressions as features, against dense Student-process regression, each point left out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from feynkac.models.amortized import PFN, KernelScores, Labels, Riemann, priors
from feynkac.models.amortized.kernel_scores import LEAST, LINEAR
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


def regression(kernel, x, y, queries, smooth=True):
    """Dense, for each column: the locations and scales of a noisy value, the log evidence."""
    k = gram(kernel, x, x, smooth) + kernel[1] * np.eye(len(x))
    cross = gram(kernel, queries, x, smooth)
    own = np.diag(gram(kernel, queries, queries, smooth)) + kernel[1]
    left = own - np.sum(cross * np.linalg.solve(k, cross.T).T, axis=1)
    squares = 1 + np.sum(y * np.linalg.solve(k, y), axis=0)
    # y is a multivariate Student of one degree of freedom: the variance is integrated out.
    student = [stats.multivariate_t(np.zeros(len(x)), k, df=1).logpdf(v) for v in y.T]
    scale = np.sqrt(left[:, None] * squares / (1 + len(x)))
    return cross @ np.linalg.solve(k, y), scale, np.mean(student)


def told(kernels, x, y, queries, smooth=True):
    """What `KernelScores` is to say, from `regression`."""
    mean, scale, evidence = (
        np.stack(v)
        for v in zip(*(regression(k, x, y, queries, smooth) for k in kernels), strict=True)
    )
    share = np.exp(evidence - evidence.max())
    share = share / share.sum()
    each = [
        np.concatenate([m, np.log(s), np.full((len(queries), 1), np.log(p))], axis=1)
        for m, s, p in zip(mean, scale, share, strict=True)
    ]
    middle = np.tensordot(share, mean, 1)
    spread = np.tensordot(share, scale**2 + mean**2, 1) - middle**2
    return np.concatenate([*each, middle, 0.5 * np.log(spread)], axis=1)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(6, 3)), rng.normal(size=(6, 2)), rng.normal(size=(4, 3))


@pytest.mark.x64
@pytest.mark.parametrize("smooth", [True, False])
def test_queries_and_left_out_points_are_dense_regressions(data, smooth):
    x, y, queries = data
    scores = KernelScores(KERNELS) if smooth else KernelScores(KERNELS, matern52)
    mask = np.arange(6) < 5
    spoilt = np.where(mask[:, None], x, np.nan)  # what is masked does not matter
    solved, own = scores.fit(jnp.asarray(spoilt), jnp.asarray(y), jnp.asarray(mask))
    asked = scores.read(solved, jnp.asarray(queries))
    x, y = x[:5], y[:5]
    np.testing.assert_allclose(asked, told(KERNELS, x, y, queries, smooth), atol=2e-5)
    for i in range(5):
        rest = np.arange(5) != i
        expected = told(KERNELS, x[rest], y[rest], x[i : i + 1], smooth)[0]
        np.testing.assert_allclose(own[i], expected, atol=2e-5)
    assert asked.shape == (4, scores.features(2))


def test_a_kernel_that_the_data_rule_out_has_a_weight_with_a_floor():
    x = jnp.linspace(-2, 2, 60)[:, None]
    scores = KernelScores(((LINEAR, 1e-3), (0.05, 1e-3)))
    solved, _ = scores.fit(x, x, jnp.ones(60, bool))
    weights = scores.read(solved, jnp.zeros((1, 1)))[0, [2, 5]]
    np.testing.assert_allclose(weights, [0.0, LEAST], atol=1e-5)


def test_no_points_are_the_prior_and_batches_are_one_by_one(data):
    x, y, queries = (jnp.asarray(v) for v in data)
    scores = KernelScores(KERNELS)
    solved, _ = scores.fit(x, y, jnp.zeros(6, bool))
    own = [[gram(k, q[None], q[None])[0, 0] + k[1] for k in KERNELS] for q in np.asarray(queries)]
    half = 0.5 * np.log(own)[:, :, None]
    each = np.concatenate([0 * half, 0 * half, half, half, 0 * half - np.log(2)], axis=-1)
    middle = 0.5 * np.log(np.mean(own, axis=1))[:, None]
    prior = np.concatenate([each.reshape(4, -1), 0 * middle, 0 * middle, middle, middle], axis=1)
    np.testing.assert_allclose(scores.read(solved, queries), prior, atol=1e-5)

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


def test_an_untrained_network_answers_as_the_regressions_do():
    process = priors.GaussianProcess(0.3)
    pfn = PFN(
        process.program(12), context=8, head=Riemann(400), scores=KernelScores(((1.0, 0.05),)),
        width=8, layers=1, heads=2, draws=256, key=jax.random.key(0),
    )  # fmt: skip
    choices = process.program(12).simulate(jax.random.key(1)).choices
    x, y, queries = choices["x"][:5], choices["y"][:5], choices["x"][5:]
    law = pfn.condition(x, y).predict(queries)
    solved, _ = pfn.scores.fit(pfn.standardized(x), pfn.head.embed(y), jnp.ones(5, bool))
    loc, log_scale = pfn.scores.mixture(pfn.scores.read(solved, pfn.standardized(queries)), 2)
    loc = pfn.head.loc + pfn.head.scale * loc[:, 0]
    expected = stats.t(1 + np.exp(3.0), loc, pfn.head.scale * jnp.exp(log_scale[:, 0]))
    for u in (0.1, 0.5, 0.8):
        np.testing.assert_allclose(law.cdf(jnp.asarray(expected.ppf(u), float)), u, atol=0.01)


@pytest.mark.parametrize("kernels", [(), ((0.0, 1.0),), ((1.0, -0.1),)])
def test_kernels_that_are_none_are_refused(kernels):
    with pytest.raises(ValueError, match="both above 0"):
        KernelScores(kernels)


@pytest.mark.parametrize("constant", [-1.0, float("nan"), float("inf")])
def test_a_constant_without_a_variance_is_refused(constant):
    with pytest.raises(ValueError, match="0 or above"):
        KernelScores(KERNELS, constant=constant)
