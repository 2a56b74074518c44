"""The Rauch-Tung-Striebel pass against the dense Gaussian of all states and data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac.models.finite import LinearGaussian

N, M, T = 2, 1, 5


def model():
    return LinearGaussian(
        m0=[0.5, -1.0],
        P0=[[1.0, 0.3], [0.3, 2.0]],
        F=[[0.9, 0.4], [-0.3, 0.7]],
        Q=[[0.5, 0.1], [0.1, 0.3]],
        H=[[1.0, 0.5]],
        R=[[0.4]],
    )


def posterior(lg, ys, seen):
    """Mean and covariance of all states given the data, by precisions in numpy float64."""
    m0, P0, F, Q, H, R = (np.asarray(a, np.float64) for a in (lg.m0, lg.P0, lg.F, lg.Q, lg.H, lg.R))
    precision, shift = np.zeros((T * N, T * N)), np.zeros(T * N)
    at = [slice(N * t, N * (t + 1)) for t in range(T)]
    precision[at[0], at[0]] += np.linalg.inv(P0)
    shift[at[0]] += np.linalg.solve(P0, m0)
    for t in range(1, T):
        both = np.r_[at[t - 1], at[t]]
        move = np.hstack([-F, np.eye(N)])
        precision[np.ix_(both, both)] += move.T @ np.linalg.solve(Q, move)
    for t in range(T):
        if seen[t]:
            precision[at[t], at[t]] += H.T @ np.linalg.solve(R, H)
            shift[at[t]] += H.T @ np.linalg.solve(R, np.asarray(ys, np.float64)[t])
    cov = np.linalg.inv(precision)
    return cov @ shift, cov


@pytest.mark.parametrize("seen", [[1, 1, 1, 1, 1], [0, 1, 0, 0, 1]])
@pytest.mark.x64
def test_smoothed_moments_and_pairs(seen):
    lg, ys = model(), jax.random.normal(jax.random.key(3), (T, M))
    observed = jnp.array(seen, bool)
    run = jax.jit(lambda m, y: (m.smoothed(y, observed), m.smoothed_cross(y, observed)))
    (means, covs), cross = run(lg, jnp.where(observed[:, None], ys, jnp.nan))
    mean, cov = posterior(lg, ys, seen)
    cov = cov.reshape(T, N, T, N)
    np.testing.assert_allclose(means, mean.reshape(T, N), atol=2e-5)
    for t in range(T):
        np.testing.assert_allclose(covs[t], cov[t, :, t, :], atol=2e-5)
    assert cross.shape == (T - 1, N, N)
    for t in range(T - 1):
        np.testing.assert_allclose(cross[t], cov[t, :, t + 1, :], atol=2e-5)
    # Rows are x_t, columns x_{t+1}: not symmetric, so a transpose would be seen.
    assert np.abs(cov[1, :, 2, :] - cov[1, :, 2, :].T).max() > 1e-2
