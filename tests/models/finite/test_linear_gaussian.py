import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from feynkac.models.finite import LinearGaussian

T = 4
YS = jnp.array([[0.3, -1.0], [1.2, 0.4], [-0.5, 0.9], [0.1, 2.0]])
OBSERVED = jnp.array([True, False, True, True])


def model():
    return LinearGaussian(
        m0=[0.5, -1.0],
        P0=[[1.0, 0.3], [0.3, 2.0]],
        F=[[0.9, 0.2], [-0.1, 0.7]],
        Q=[[0.5, 0.1], [0.1, 0.3]],
        H=[[1.0, 0.5], [0.0, -1.0]],
        R=[[0.4, 0.1], [0.1, 0.6]],
    )


def dense(lg):
    """Mean and covariance of (x_0..x_{T-1}, y_0..y_{T-1}) as one vector, by block recursion."""
    m0, P0, F, Q, H, R = (
        np.asarray(a, dtype=float) for a in (lg.m0, lg.P0, lg.F, lg.Q, lg.H, lg.R)
    )
    n = len(m0)
    means, marginals = [m0], [P0]
    for _ in range(T - 1):
        means.append(F @ means[-1])
        marginals.append(F @ marginals[-1] @ F.T + Q)
    xx = np.zeros((T, n, T, n))
    for s in range(T):
        cross = marginals[s]
        for t in range(s, T):
            xx[t, :, s, :], xx[s, :, t, :] = cross, cross.T
            cross = F @ cross
    xx = xx.reshape(T * n, T * n)
    big = np.kron(np.eye(T), H)
    mean = np.concatenate([*means, *(H @ m for m in means)])
    yy = big @ xx @ big.T + np.kron(np.eye(T), R)
    return mean, np.block([[xx, xx @ big.T], [big @ xx, yy]])


def condition(mean, cov, known, values):
    """Law of the other entries given those at `known`, and the log density of `values`."""
    other = np.setdiff1d(np.arange(len(mean)), known)
    gain = cov[np.ix_(other, known)] @ np.linalg.inv(cov[np.ix_(known, known)])
    log_p = multivariate_normal(mean[known], cov[np.ix_(known, known)]).logpdf(values)
    return (
        mean[other] + gain @ (values - mean[known]),
        cov[np.ix_(other, other)] - gain @ cov[np.ix_(known, other)],
        log_p,
    )


def data_entries(seen):
    return np.concatenate([[8 + 2 * t, 9 + 2 * t] for t in seen])


def test_one_step_matches_hand_computation():
    lg = LinearGaussian([1.0], [[3.0]], [[2.0]], [[1.0]], [[1.0]], [[1.0]])
    ys = jnp.array([[5.0]])
    means, covs = lg.filtered(ys)
    np.testing.assert_allclose(means, [[4.0]], rtol=1e-6)
    np.testing.assert_allclose(covs, [[[0.75]]], rtol=1e-6)
    np.testing.assert_allclose(
        lg.log_evidence(ys), -0.5 * np.log(2 * np.pi * 4) - 16 / 8, rtol=1e-6
    )


@pytest.mark.parametrize("first_seen", [True, False])
def test_parallel_in_time_is_the_same(first_seen):
    """Over 37 steps, some without data, the first among them or not."""
    lg = model()
    ys = jax.random.normal(jax.random.key(3), (37, 2)) * 2
    observed = (jnp.arange(37) % 5 != 2).at[0].set(first_seen)
    ys = jnp.where(observed[:, None], ys, jnp.nan)

    @jax.jit
    def both(lg, ys, observed):
        def out(parallel):
            data = (ys, observed, parallel)
            return lg.log_evidence(*data), lg.filtered(*data), lg.smoothed(*data)

        return out(True), out(False)

    def same(a, b):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5)

    jax.tree.map(same, *both(lg, ys, observed))


@pytest.mark.parametrize("observed", [None, OBSERVED], ids=["all", "missing"])
def test_filter_and_smoother_match_the_dense_gaussian(observed):
    lg = model()
    ys = YS if observed is None else jnp.where(observed[:, None], YS, jnp.nan)
    seen = [t for t in range(T) if observed is None or observed[t]]
    mean, cov = dense(lg)
    evidence, filtered, smoothed = jax.jit(
        lambda m, y: (m.log_evidence(y, observed), m.filtered(y, observed), m.smoothed(y, observed))
    )(lg, ys)
    known = data_entries(seen)
    post_mean, post_cov, log_p = condition(mean, cov, known, np.asarray(YS)[seen].reshape(-1))
    np.testing.assert_allclose(evidence, log_p, rtol=1e-5)
    for t in range(T):
        here = slice(2 * t, 2 * t + 2)
        np.testing.assert_allclose(smoothed[0][t], post_mean[here], atol=1e-5)
        np.testing.assert_allclose(smoothed[1][t], post_cov[here, here], atol=1e-5)
        past = [s for s in seen if s <= t]
        m, c, _ = condition(mean, cov, data_entries(past), np.asarray(YS)[past].reshape(-1))
        np.testing.assert_allclose(filtered[0][t], m[here], atol=1e-5)
        np.testing.assert_allclose(filtered[1][t], c[here, here], atol=1e-5)


def test_log_joint_matches_the_dense_gaussian():
    lg = model()
    xs = jax.random.normal(jax.random.key(0), (T, 2))
    mean, cov = dense(lg)
    flat = np.concatenate([np.asarray(xs).reshape(-1), np.asarray(YS).reshape(-1)])
    np.testing.assert_allclose(
        lg.log_joint(xs, YS), multivariate_normal(mean, cov).logpdf(flat), rtol=1e-5
    )


def test_posterior_samples_have_the_dense_posterior_moments():
    lg = model()
    mean, cov = dense(lg)
    seen = [0, 2, 3]
    values = np.asarray(YS)[seen].reshape(-1)
    post_mean, post_cov, _ = condition(mean, cov, data_entries(seen), values)
    post_mean, post_cov = post_mean[:8], post_cov[:8, :8]
    runs = 20_000
    draws = jax.jit(jax.vmap(lambda k: lg.posterior_sample(k, YS, OBSERVED)))(
        jax.random.split(jax.random.key(1), runs)
    )
    centred = np.asarray(draws, dtype=float).reshape(runs, 8) - post_mean
    whitened = centred @ np.linalg.inv(np.linalg.cholesky(post_cov)).T
    assert np.abs(whitened.mean(0) * np.sqrt(runs)).max() < 4
    second = whitened.T @ whitened / runs
    spread = np.where(np.eye(8, dtype=bool), np.sqrt(2 / runs), np.sqrt(1 / runs))
    assert np.abs((second - np.eye(8)) / spread).max() < 4


@pytest.mark.parametrize("t", [0, 2])
def test_guided_and_predictive_satisfy_bayes_rule(t):
    lg = model()
    previous, y = jnp.array([0.2, -0.4]), jnp.array([1.0, 0.5])
    mean, cov = lg.transition(previous, t)
    guided_mean, guided_cov = lg.guided(previous, t, y)
    for x in np.random.default_rng(0).normal(size=(3, 2)):
        prior = multivariate_normal(mean, cov).logpdf(x)
        likelihood = multivariate_normal(lg.H @ x, lg.R).logpdf(y)
        posterior = multivariate_normal(guided_mean, guided_cov, allow_singular=False).logpdf(x)
        np.testing.assert_allclose(
            lg.log_predictive(previous, t, y), prior + likelihood - posterior, rtol=1e-4
        )
    if t == 0:
        np.testing.assert_allclose(guided_mean, lg.filtered(y[None])[0][0], rtol=1e-5)


@pytest.mark.slow
def test_gradient_matches_differences_and_ignores_missing_data():
    lg, ys = model(), jnp.where(OBSERVED[:, None], YS, jnp.nan)
    grads = jax.grad(lambda m: m.log_evidence(ys, OBSERVED))(lg)
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(grads))
    assert jnp.all(jax.grad(lambda y: lg.log_evidence(y, OBSERVED))(ys)[1] == 0)
    means, covs = lg.smoothed(ys, OBSERVED)
    np.testing.assert_allclose(grads.m0, jnp.linalg.solve(lg.P0, means[0] - lg.m0), atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"P0": [[1.0, 2.0], [2.0, 1.0]]}, "P0 is not positive definite"),
        ({"Q": [[1.0, 0.5], [0.0, 1.0]]}, "Q is not symmetric"),
        ({"R": np.zeros((2, 2))}, "R is not positive definite"),
        ({"F": np.eye(3)}, "F has shape"),
        ({"H": np.eye(3)}, "H has shape"),
        ({"m0": 0.0}, r"m0 must be \[n\]"),
        ({"P0": [[np.nan, 0.0], [0.0, 1.0]]}, "P0"),
    ],
)
def test_bad_parameters_are_errors(change, message):
    lg = model()
    given = {k: getattr(lg, k) for k in ("m0", "P0", "F", "Q", "H", "R")} | change
    with pytest.raises(ValueError, match=message):
        LinearGaussian(**given)


@pytest.mark.parametrize("observed", [None, OBSERVED], ids=["all", "missing"])
@pytest.mark.x64
@pytest.mark.slow
def test_program_has_the_same_joint_law(observed):
    lg = model()
    ys = YS if observed is None else jnp.where(observed[:, None], YS, jnp.nan)
    args = (ys,) if observed is None else (ys, observed)
    space = lg.state_space(T)
    xs = jax.random.normal(jax.random.key(4), (3, T, 2))
    log_p = jax.jit(jax.vmap(lambda x: space.assess({"x": x}, *args)[0]))(xs)
    expected = jax.vmap(lambda x: lg.log_joint(x, *args))(xs)
    np.testing.assert_allclose(log_p, expected, rtol=1e-5)
    grads = jax.grad(lambda x: space.assess({"x": x}, *args)[0])(xs[0])
    assert jnp.all(jnp.isfinite(grads))


def test_program_is_properly_weighted_for_the_evidence():
    lg = model()
    space = lg.state_space(2)
    keys = jax.random.split(jax.random.key(2), 20_000)
    _, log_w = jax.jit(jax.vmap(lambda k: space.generate(k, {}, YS[:2])))(keys)
    weights = np.exp(np.asarray(log_w, dtype=float))
    evidence = np.exp(float(lg.log_evidence(YS[:2])))
    assert abs(weights.mean() - evidence) / weights.std() * np.sqrt(len(weights)) < 4


def test_optimal_proposal_weighs_every_draw_alike():
    lg = model()
    args = (lg, YS, OBSERVED)
    step, propose = lg.state_space(T).step, lg.optimal_proposal().step
    previous = jnp.array([0.2, -0.4])

    def weights(key, t):
        drawn = propose.simulate(key, previous, t, *args)
        log_p, _ = step.assess(drawn.choices, previous, t, *args)
        return log_p - drawn.score

    keys = jax.random.split(jax.random.key(8), 5)
    each = jax.jit(jax.vmap(jax.vmap(weights, (None, 0)), (0, None)))(keys, jnp.arange(T))
    expected = jax.vmap(lambda t, y: lg.log_predictive(previous, t, y))(jnp.arange(T), YS)
    expected = jnp.where(OBSERVED, expected, 0.0)
    np.testing.assert_allclose(each, np.broadcast_to(expected, (5, T)), atol=1e-4)
