import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac.models.finite import HiddenMarkovModel

YS = jnp.array([0, 2, 1, 1])


def log(p):
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(p, dtype=float))


def sparse_hmm():
    """Three states and symbols, with zeros in every table."""
    return HiddenMarkovModel(
        log([0.6, 0.4, 0.0]),
        log([[0.5, 0.5, 0.0], [0.0, 0.3, 0.7], [0.2, 0.0, 0.8]]),
        log([[0.7, 0.0, 0.3], [0.1, 0.6, 0.3], [0.0, 0.5, 0.5]]),
    )


def enumerate_paths(hmm, ys):
    """All paths with their joint probability, multiplied out in numpy."""
    initial, transition, emission = (
        np.exp(np.asarray(a, dtype=float))
        for a in (hmm.log_initial, hmm.log_transition, hmm.log_emission)
    )
    paths = np.array(list(itertools.product(range(len(initial)), repeat=len(ys))))
    p = initial[paths[:, 0]] * emission[paths[:, 0], ys[0]]
    for t in range(1, len(ys)):
        p = p * transition[paths[:, t - 1], paths[:, t]] * emission[paths[:, t], ys[t]]
    return paths, p


def test_enumeration_and_forward_match_hand_computation():
    hmm = HiddenMarkovModel(
        log([0.5, 0.5]), log([[0.9, 0.1], [0.2, 0.8]]), log([[0.7, 0.3], [0.1, 0.9]])
    )
    ys = jnp.array([0, 1])
    paths, p = enumerate_paths(hmm, np.asarray(ys))
    assert paths.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    np.testing.assert_allclose(p, [0.0945, 0.0315, 0.003, 0.036], rtol=1e-6)
    np.testing.assert_allclose(jnp.exp(hmm.log_evidence(ys)), 0.165, rtol=1e-5)
    np.testing.assert_allclose(hmm.filtered(ys)[0], [0.875, 0.125], rtol=1e-5)
    expected = np.array([[0.126, 0.039], [0.0975, 0.0675]]) / 0.165
    np.testing.assert_allclose(hmm.smoothed(ys), expected, rtol=1e-5)
    assert hmm.viterbi(ys).tolist() == [0, 0]


def test_exact_quantities_match_enumeration_with_zeros():
    hmm = sparse_hmm()
    ys = np.asarray(YS)
    paths, p = enumerate_paths(hmm, ys)
    weights = p / p.sum()
    evidence, smoothed, pairwise, path, future = jax.jit(
        lambda h, y: (
            h.log_evidence(y),
            h.smoothed(y),
            h.pairwise(y),
            h.viterbi(y),
            h.log_future(y),
        )
    )(hmm, YS)
    np.testing.assert_allclose(evidence, np.log(p.sum()), rtol=1e-5)
    for t in range(4):
        expected = [weights[paths[:, t] == k].sum() for k in range(3)]
        np.testing.assert_allclose(smoothed[t], expected, atol=1e-6)
        prefix_paths, prefix_p = enumerate_paths(hmm, ys[: t + 1])
        filtered = np.array([prefix_p[prefix_paths[:, t] == k].sum() for k in range(3)])
        np.testing.assert_allclose(hmm.filtered(YS)[t], filtered / filtered.sum(), atol=1e-6)
        both = np.array([p[paths[:, t] == k].sum() for k in range(3)])
        np.testing.assert_allclose(np.exp(future[t]) * filtered, both, atol=1e-7)
    for t, i, j in itertools.product(range(3), range(3), range(3)):
        expected = weights[(paths[:, t] == i) & (paths[:, t + 1] == j)].sum()
        np.testing.assert_allclose(pairwise[t, i, j], expected, atol=1e-6)
    assert path.tolist() == paths[p.argmax()].tolist()
    joints = jax.vmap(lambda z: hmm.log_joint(z, YS))(jnp.asarray(paths))
    np.testing.assert_allclose(np.exp(joints), p, atol=1e-7)


def test_posterior_samples_follow_the_enumerated_law():
    hmm = sparse_hmm()
    paths, p = enumerate_paths(hmm, np.asarray(YS))
    runs = 20_000
    draws = jax.jit(jax.vmap(lambda k: hmm.posterior_sample(k, YS)))(
        jax.random.split(jax.random.key(0), runs)
    )
    index = np.asarray(draws) @ 3 ** np.arange(3, -1, -1)
    counts = np.bincount(index, minlength=81)
    weights = p / p.sum()
    assert counts[weights == 0].sum() == 0
    live = weights > 0
    z = (counts - runs * weights)[live] / np.sqrt(runs * weights * (1 - weights))[live]
    assert live.sum() > 3
    assert np.abs(z).max() < 4


def test_impossible_data_is_minus_inf_with_zero_gradient():
    hmm = HiddenMarkovModel(log([1.0, 0.0]), log(np.eye(2)), log([[1.0, 0.0], [0.0, 1.0]]))
    ys = jnp.array([0, 1])
    value, grads = jax.value_and_grad(lambda h: h.log_evidence(ys))(hmm)
    assert value == -jnp.inf
    assert all(bool(jnp.all(g == 0)) for g in jax.tree.leaves(grads))
    assert jnp.all(jnp.isnan(hmm.smoothed(ys)))
    assert hmm.viterbi(ys).tolist() == [-1, -1]
    assert hmm.posterior_sample(jax.random.key(1), ys).tolist() == [-1, -1]


def test_gradients_are_expected_counts():
    hmm = sparse_hmm()
    grads = jax.grad(lambda h: h.log_evidence(YS))(hmm)
    np.testing.assert_allclose(grads.log_initial, hmm.smoothed(YS)[0], atol=1e-6)
    np.testing.assert_allclose(grads.log_transition, hmm.pairwise(YS).sum(0), atol=1e-6)
    counts = jax.nn.one_hot(YS, 3).T @ hmm.smoothed(YS)
    np.testing.assert_allclose(grads.log_emission, counts.T, atol=1e-6)


def test_one_step_sequence():
    hmm = sparse_hmm()
    ys = jnp.array([2])
    np.testing.assert_allclose(jnp.exp(hmm.log_evidence(ys)), 0.6 * 0.3 + 0.4 * 0.3, rtol=1e-5)
    assert hmm.pairwise(ys).shape == (0, 3, 3)
    assert hmm.viterbi(ys).tolist() == [0]


def test_unlikely_long_data_does_not_underflow():
    p = 1e-30
    hmm = HiddenMarkovModel(log([1.0, 0.0]), log(np.eye(2)), log([[p, 1 - p], [0.5, 0.5]]))
    ys = jnp.zeros(50, dtype=jnp.int32)
    np.testing.assert_allclose(hmm.log_evidence(ys), 50 * np.log(p), rtol=1e-5)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (([0.5, 0.5], np.eye(2), np.eye(2)), "log_softmax"),
        ((log([0.5, 0.5]), log(np.full((2, 2), 0.4)), log(np.eye(2))), r"row 0"),
        ((log([0.5, 0.5]), log(np.eye(3)), log(np.eye(2))), "log_transition has shape"),
        ((log([0.5, 0.5]), log(np.eye(2)), log(np.eye(3))), "log_emission has shape"),
        ((log(np.eye(2)), log(np.eye(2)), log(np.eye(2))), r"must be \[K\]"),
        ((log([np.nan, 0.5]), log(np.eye(2)), log(np.eye(2))), "log_initial"),
    ],
)
def test_bad_tables_are_errors(tables, message):
    with pytest.raises(ValueError, match=message):
        HiddenMarkovModel(*tables)


def test_symbols_out_of_range():
    hmm = sparse_hmm()
    for ys in ([0, 3], [0, -1]):
        with pytest.raises(ValueError, match=r"ys must be in 0\.\.2"):
            hmm.log_evidence(jnp.array(ys))
        assert jnp.isnan(jax.jit(lambda y: hmm.log_evidence(y))(jnp.array(ys)))
    with pytest.raises(ValueError, match="empty"):
        hmm.log_evidence(jnp.zeros(0, dtype=jnp.int32))


@pytest.mark.x64
def test_program_has_the_same_joint_law():
    hmm = sparse_hmm()
    paths, p = enumerate_paths(hmm, np.asarray(YS))
    model = hmm.state_space(4)
    log_p = jax.jit(jax.vmap(lambda z: model.assess({"z": z}, YS)[0]))(jnp.asarray(paths))
    np.testing.assert_allclose(np.exp(log_p), p, rtol=1e-4, atol=1e-9)


def test_program_is_properly_weighted_for_the_evidence():
    hmm = sparse_hmm()
    model = hmm.state_space(4)
    keys = jax.random.split(jax.random.key(2), 20_000)
    traces, log_w = jax.jit(jax.vmap(lambda k: model.generate(k, {}, YS)))(keys)
    weights = np.exp(np.asarray(log_w, dtype=float))
    z = (weights.mean() - np.exp(hmm.log_evidence(YS))) / weights.std() * np.sqrt(len(weights))
    assert abs(z) < 4
    score = jax.vmap(lambda z: hmm.log_joint(z, YS))(traces.choices["z"])
    np.testing.assert_allclose(traces.score + traces.log_weight, score, rtol=1e-4)


def test_program_wants_data_of_its_length():
    with pytest.raises(ValueError, match="a model of 3 steps"):
        sparse_hmm().state_space(3).simulate(jax.random.key(0), YS)
