"""Run lengths against all segmentations; robust updates against the loss, differentiated."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats
from scipy.special import logsumexp

from feynkac.models.finite.changepoint import NormalRun, RobustNormalRun, run_lengths

MODEL = NormalRun(0.3, 0.5, 2.0, 1.5)
XS = np.array([0.1, -0.4, 0.3, 4.0, 4.5, 3.6, 3.9], np.float32)
HAZARD = 0.2


def log_segment(xs, model=MODEL):
    """Log evidence of one run, term by term from Student's t."""
    mean, count, shape, rate = (float(v) for v in model.start())
    total = 0.0
    for x in xs.astype(float):
        scale = np.sqrt(rate * (count + 1) / (shape * count))
        total += stats.t.logpdf(x, 2 * shape, mean, scale)
        rate += count * (x - mean) ** 2 / (2 * (count + 1))
        mean, count, shape = (count * mean + x) / (count + 1), count + 1, shape + 0.5
    return total


def test_against_all_segmentations():
    result = jax.jit(lambda xs: run_lengths(xs, HAZARD, MODEL))(XS)
    n = len(XS)
    weights, lengths = [], []
    for ends in itertools.product([False, True], repeat=n - 1):
        starts = [0, *(i + 1 for i, end in enumerate(ends) if end), n]
        log_w = sum(log_segment(XS[a:b]) for a, b in itertools.pairwise(starts))
        log_w += sum(np.log(HAZARD) if end else np.log1p(-HAZARD) for end in ends)
        weights.append(log_w)
        lengths.append(n - 1 - starts[-2])
    weights, lengths = np.array(weights), np.array(lengths)
    assert abs(result.log_evidence - logsumexp(weights)) < 1e-4
    for r in range(n):
        wanted = logsumexp(weights[lengths == r]) - logsumexp(weights)
        assert abs(result.log_posterior[-1, r] - wanted) < 1e-3
    # The level changed at t = 3; three data later that is known.
    assert int(jnp.argmax(result.log_posterior[-1])) == 3
    assert result.started(3)[3] > 0.5


def test_robust_updates_are_the_loss():
    """J is quadratic in eta: its differences are its derivatives, and those the statistics."""
    model = RobustNormalRun((0.5, 1.5), ((2.0, 0.3), (0.3, 1.0)), 0.3, 0.2, 2.0)
    xs = XS.astype(float)

    def flux(x, eta):
        """m^2 times the score of N(eta_1 / eta_2, 1 / eta_2)."""
        return (eta[0] - eta[1] * x) / (1 + ((x - 0.2) / 2.0) ** 2)

    def log_posterior(eta):
        gap, h = eta - np.array([0.5, 1.5]), 1e-5
        prior = -0.5 * gap @ np.linalg.inv([[2.0, 0.3], [0.3, 1.0]]) @ gap
        score = eta[0] - eta[1] * xs
        slope = (flux(xs + h, eta) - flux(xs - h, eta)) / (2 * h)
        return prior - 0.3 * np.sum(flux(xs, eta) * score + 2 * slope)

    precision, shift = model.start()
    for x in jnp.asarray(XS):
        precision, shift = model.update((precision, shift), x)
    precision, shift = np.asarray(precision, float), np.asarray(shift, float)
    at, unit, f = np.array([0.7, 1.1]), np.eye(2), log_posterior
    for i, e in enumerate(unit):
        slope = (f(at + e) - f(at - e)) / 2
        assert abs(slope - (shift - precision @ at)[i]) < 1e-3
        for j, d in enumerate(unit):
            curve = f(at + e + d) - f(at + e) - f(at + d) + f(at)
            assert abs(curve + precision[i, j]) < 1e-3
    # The predictive, by brute force over both natural parameters.
    mean, cov = np.linalg.solve(precision, shift), np.linalg.inv(precision)
    spread = np.diag(cov) ** 0.5
    grid = np.linspace(mean - 7 * spread, mean + 7 * spread, 1201).T
    one, two = np.meshgrid(grid[0], grid[1][grid[1] > 1e-6], indexing="ij")
    density = stats.multivariate_normal(mean, cov).pdf(np.stack([one, two], -1))
    predictive = jax.jit(lambda statistics, x: model.log_predictive(statistics, x))
    for x in (-1.0, 2.0, 9.0):
        p = stats.norm.pdf(x, one / two, two**-0.5)
        wanted = np.log((density * p).sum() / density.sum())
        start = jnp.asarray(precision, float), jnp.asarray(shift, float)
        assert abs(predictive(start, jnp.asarray(x)) - wanted) < 5e-3


def test_an_outlier_starts_no_run_where_updates_are_robust():
    """Over series with one outlier of 12 deviations and one change by 6."""
    series = np.random.default_rng(0).normal(size=(12, 60))
    series[:, 30] = 12.0
    series[:, 45:] += 6.0
    shares = []
    for model in (NormalRun(0.0, 0.1, 1.0, 1.0), RobustNormalRun()):
        started = jax.jit(jax.vmap(lambda xs, m=model: run_lengths(xs, 0.01, m).started(8)))(
            jnp.asarray(series, float)
        )
        assert started[:, 44:47].sum(1).mean() > 0.9
        shares.append(float(started[:, 28:32].sum(1).mean()))
    assert shares[0] > 0.8 and shares[1] < 0.3
