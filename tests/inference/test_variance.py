"""Variance estimates from one run against the variance over many."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models
from oracles import tiny_models as tiny

from feynkac import inference
from feynkac.inference import SMC, Multinomial, variance

KEY = jax.random.key(83)


def token(choices):
    return choices["token"][1].astype(float)


@pytest.mark.slow
def test_unbiased():
    """E[Z-hat^2 V] = var(Z-hat) with four particles, selected at every step; and of f."""
    exact = inference.exact.enumerate(tiny.text(tiny.MILD, tiny.Ending(True)))
    # The filter stops where all have ended: what was not resampled since is not counted.
    smc = SMC(4, Multinomial(ess_threshold=2.0))

    def one(key):
        p = smc.run(key, exact.target)
        z = jnp.exp(p.log_evidence - exact.log_evidence)
        dead = jnp.isneginf(p.log_evidence)
        mean = p.expectation(token)
        pair = jnp.stack([variance.of_evidence(p), variance.of_integral(p, token)])
        return z, jnp.where(dead, 0.0, z * mean), jnp.where(dead, 0.0, z * z * pair)

    z, integral, said = jax.jit(jax.vmap(one))(jax.random.split(KEY, 2**16))
    z, integral, said = (np.asarray(x, np.float64) for x in (z, integral, said))
    want = exact.expectation(token)
    for estimate, truth, v in ((z, 1.0, said[:, 0]), (integral, want, said[:, 1])):
        difference = v - (estimate - truth) ** 2
        error = difference.std(ddof=1) / np.sqrt(len(difference))
        assert abs(difference.mean()) < 4 * error
        # The test sees a missing power of n / (n - 1).
        assert 20 * error < ((estimate - truth) ** 2).mean()


@pytest.mark.slow
def test_consistent():
    """Adaptive resampling, many particles: the mean of the estimates is the variance over runs."""
    target = small_models.hmm(6)
    smc = SMC(256, Multinomial(ess_threshold=0.5))

    def f(choices):
        return choices["z"][-2:].astype(float)

    def one(key):
        p = smc.run(key, target)
        v = variance.of_expectation(p, f)
        return p.log_evidence, p.expectation(f), variance.of_evidence(p), v, p.resampled.sum()

    runs = 2048
    keys = jax.random.split(KEY, runs)
    log_z, mean, of_log_z, of_mean, resampled = map(np.asarray, jax.jit(jax.vmap(one))(keys))
    assert (resampled > 0).mean() > 0.5
    # The variance of a sample variance of nearly normal draws is 2 / runs of its square.
    spread = 4 * np.sqrt(2 / runs) + 0.05
    assert abs(of_log_z.mean() / log_z.var(ddof=1) - 1) < spread
    assert (np.abs(of_mean.mean(0) / mean.var(0, ddof=1) - 1) < spread).all()


@pytest.mark.slow
def test_lag():
    """The whole length as lag is no lag; a short one does not collapse as Eve indices do."""
    target = small_models.hmm(60)
    with pytest.raises(ValueError, match="n_particles >= 2"):
        variance.of_evidence(SMC(1).run(KEY, target))
    p = SMC(12, Multinomial(ess_threshold=2.0)).run(KEY, target)

    def last(choices):
        return choices["z"][-1].astype(float)

    whole = variance.of_expectation(p, last)
    np.testing.assert_allclose(variance.of_expectation(p, last, 60), whole)
    assert whole < 1e-6  # one first ancestor
    assert variance.of_expectation(p, last, 4) > 1e-4
