"""Is the mean of many estimates the truth?"""

import jax
import jax.numpy as jnp
import numpy as np

QUICK = {"xla_backend_optimization_level": 0}  # compiling takes longer than the draws


def worst_z(estimator, key, n, truth, *args):
    """The largest |z| of n estimates against the truth, over the value and all of the gradient."""
    keys = jax.random.split(key, n)
    draws = jax.jit(jax.vmap(lambda k: estimator(k, *args)), compiler_options=QUICK)(keys)
    worst = 0.0
    for estimates, exact in zip(jax.tree.leaves(draws), jax.tree.leaves(truth), strict=True):
        estimates = np.asarray(estimates, np.float64)
        error = np.abs(estimates.mean(0) - np.asarray(exact, np.float64))
        # The floor is for what has no variance: rounding in single precision.
        scale = np.maximum(estimates.std(0) / np.sqrt(n), 1e-6)
        worst = max(worst, float(np.max(error / scale)))
    assert np.isfinite(worst)
    return worst


def leaves_close(a, b, tolerance):
    """Are two trees equal up to a tolerance?"""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(jnp.allclose(x, y, atol=tolerance, rtol=tolerance) for x, y in pairs)
