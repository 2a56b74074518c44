"""Entropy-weighted inference on finite chains against enumeration of all paths in numpy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from feynkac import ppl
from feynkac.models.finite import HiddenMarkovModel, MarkovLM
from feynkac.models.finite.chain import FiniteChain
from feynkac.models.finite.semiring import LogSum, Max, Tempered, tempered_sum

K, T = 3, 4
EOS = 2


def log(p):
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(p, dtype=float))


def chain():
    """Three values, four variables, some steps impossible, one large factor."""
    rng = np.random.default_rng(4)
    steps = rng.normal(size=(T - 1, K, K)) * 2
    steps[0, 0, 1] = steps[1, 2, 2] = steps[2, 1, 0] = -np.inf
    steps[1, 1, 0] += 3
    return FiniteChain(np.array([0.3, -np.inf, 1.0]), steps)


def paths_and_weights(chain):
    first, steps = (np.asarray(a, np.float64) for a in (chain.log_first, chain.log_steps))
    paths = np.array(list(itertools.product(range(len(first)), repeat=len(steps) + 1)))
    log_w = first[paths[:, 0]].copy()
    for t, step in enumerate(steps):
        log_w += step[paths[:, t], paths[:, t + 1]]
    return paths, log_w


def powered(log_w, w, axis):
    """The entropy-weighted sum by its definition, in float64."""
    if w == 0:
        return log_w.max(axis)
    return w * np.logaddexp.reduce(log_w / w, axis=axis)


def eliminated(chain, weights, order):
    """The value by summing variables out of the whole table one after the other."""
    k = chain.log_first.shape[0]
    table = paths_and_weights(chain)[1].reshape((k,) * chain.length)
    axes = list(range(chain.length))
    for variable in order:
        table = powered(table, weights[variable], axes.index(variable))
        axes.remove(variable)
    return float(table)


def test_sums():
    x = jnp.array([[0.0, 1.0, -jnp.inf], [-jnp.inf] * 3, [2.0, 2.0, 1.0]])
    want = [np.logaddexp(0, 1), -np.inf, np.logaddexp.reduce([2, 2, 1])]
    np.testing.assert_allclose(LogSum().add(x), want, rtol=1e-6)
    np.testing.assert_allclose(Tempered(1.0).add(x), want, rtol=1e-6)
    np.testing.assert_array_equal(Max().add(x), [1, -np.inf, 2])
    np.testing.assert_array_equal(Tempered(0.0).add(x), [1, -np.inf, 2])
    half = [0.5 * np.logaddexp(0, 2), -np.inf, 0.5 * np.logaddexp.reduce([4, 4, 2])]
    np.testing.assert_allclose(Tempered(0.5).add(x), half, rtol=1e-6)
    # Large values neither overflow nor vanish, at any weight.
    big = jnp.array([1e4, 1e4 - 1, -1e4])
    for w in (1.0, 1e-3, 1e-30, 0.0):
        exact = powered(np.asarray(big, np.float64), w, 0) if w > 1e-9 else 1e4
        np.testing.assert_allclose(Tempered(w).add(big), exact, rtol=1e-6)
    assert jnp.isnan(Tempered(0.5).add(jnp.array([0.0, jnp.nan])))
    assert jnp.isnan(Tempered(0.0).add(jnp.array([-jnp.inf, jnp.nan])))


def test_gradients_of_sums():
    """Softmax by the values, entropy by the weight; nothing is NaN at -inf or at weight 0."""
    x = jnp.array([0.3, -jnp.inf, 1.0, 1.0])
    for w in (1.0, 0.3, 1e-35, 0.0):
        by_x, by_w = jax.grad(lambda x, w: tempered_sum(x, w, 0), (0, 1))(x, jnp.asarray(w))
        law = np.array([0, 0, 0.5, 0.5]) if w < 1e-9 else np.asarray(jax.nn.softmax(x / w))
        np.testing.assert_allclose(by_x, law, atol=1e-6)
        entropy = -np.sum(law * log(np.where(law > 0, law, 1))) if w > 1e-9 else 0
        np.testing.assert_allclose(by_w, entropy, atol=1e-5)
    nothing = jax.grad(lambda x: tempered_sum(x, jnp.asarray(0.5), 0))(jnp.full(3, -jnp.inf))
    np.testing.assert_array_equal(nothing, np.zeros(3))


@pytest.mark.x64
def test_values_marginals_and_parallel():
    """One weight: value, futures and pasts, in a scan and in parallel, against the whole table."""
    c = chain()
    paths, log_w = paths_and_weights(c)
    weights = jnp.array([1.0, 0.6, 0.05, 0.0])

    @jax.jit
    def everything(c, w):
        both = [
            (c.log_value(w, p), c.log_future(w, p), c.log_past(w, p), c.marginals(w, p))
            for p in (False, True)
        ]
        return both, c.pairwise(w), c.entropies(w)

    for w in weights:
        both, pairwise, entropies = everything(c, w)
        value = powered(log_w, float(w), 0)
        for got, future, past, marginals in both:
            np.testing.assert_allclose(got, value, rtol=2e-5)
            through = np.full((T, K), -np.inf)
            for t, k in itertools.product(range(T), range(K)):
                through[t, k] = powered(log_w[paths[:, t] == k], float(w), 0)
            np.testing.assert_allclose(past + future, through, rtol=2e-5, atol=1e-5)
            law = np.exp((log_w - value) / float(w)) if w > 0 else log_w == log_w.max()
            exact = [[law[paths[:, t] == k].sum() for k in range(K)] for t in range(T)]
            np.testing.assert_allclose(marginals, exact, atol=5e-4 if w < 0.1 else 3e-5)
        for t in range(T - 1):
            exact = [
                [law[(paths[:, t] == i) & (paths[:, t + 1] == j)].sum() for j in range(K)]
                for i in range(K)
            ]
            np.testing.assert_allclose(pairwise[t], exact, atol=5e-4 if w < 0.1 else 3e-5)
        entropy = -np.sum(law * log(np.where(law > 0, law, 1))) if w > 0 else 0
        np.testing.assert_allclose(jnp.sum(entropies), entropy, atol=1e-3 if w < 0.1 else 1e-4)


def test_each_variable_its_own_weight():
    """Backward elimination, and the variational problem that it solves."""
    c = chain()
    value = jax.jit(lambda c, w: c.log_value(w))
    for weights in ([1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.5, 2.0], [2.0, 0.3, 0.0, 1.5]):
        want = eliminated(c, weights, [3, 2, 1, 0])
        np.testing.assert_allclose(value(c, jnp.array(weights)), want, rtol=1e-5)
        # The order matters: this is no accident of the example.
        assert abs(eliminated(c, weights, [0, 1, 2, 3]) - want) > 1e-3
    # max over q of E_q[log weight] + sum_t w_t H(z_t | past), by a general optimizer.
    small = FiniteChain(np.array([0.2, -0.5]), np.array([[[0.3, 1.0], [-1.0, 0.4]]]))
    w = np.array([0.7, 0.2])
    table = paths_and_weights(small)[1].reshape(2, 2)

    def loss(logits):
        q = np.exp(logits - np.logaddexp.reduce(logits)).reshape(2, 2)
        first = q.sum(1)
        h_first = -np.sum(first * np.log(first))
        h_rest = -np.sum(q * np.log(q)) - h_first
        return -(np.sum(q * table) + w[0] * h_first + w[1] * h_rest)

    best = minimize(loss, np.zeros(4), method="BFGS", tol=1e-12)
    np.testing.assert_allclose(small.log_value(jnp.asarray(w)), -best.fun, rtol=1e-5)


def test_marginal_map():
    """Others summed out first, then the maximum, for every set of kept variables."""
    c = chain()
    _, log_w = paths_and_weights(c)
    table = log_w.reshape((K,) * T)

    @functools.partial(jax.jit, static_argnums=1)
    def answers(c, kept):
        left = c.eliminate(kept)
        path = left.sample(jax.random.key(0), 0.0)
        return left.log_value(0.0), left.log_value(1.0), path

    for kept in [(2,), (0, 3), (1, 2), (0, 1, 3)]:
        others = tuple(t for t in range(T) if t not in kept)
        summed = np.logaddexp.reduce(table, axis=others)
        best, whole, path = answers(c, kept)
        assert path.shape == (len(kept),)
        np.testing.assert_allclose(best, summed.max(), rtol=1e-5)
        np.testing.assert_allclose(whole, np.logaddexp.reduce(log_w), rtol=1e-5)
        assert tuple(np.asarray(path)) == np.unravel_index(summed.argmax(), summed.shape)
    colder = jax.jit(lambda c: c.eliminate((0, 3), 0.4).log_value(1.0))(c)
    want = eliminated(c, [1.0, 0.4, 0.4, 1.0], [2, 1, 3, 0])
    np.testing.assert_allclose(colder, want, rtol=1e-5)
    with pytest.raises(ValueError, match="different variables among 0..3"):
        c.eliminate((0, 4))
    with pytest.raises(ValueError, match="different variables"):
        c.eliminate(())


def test_samples():
    """Exact at weight 1, the best path at 0, the optimal law with mixed weights."""
    c = chain()
    paths, log_w = paths_and_weights(c)
    runs = 20_000
    keys = jax.random.split(jax.random.key(1), runs)
    draw = jax.jit(lambda c, w: jax.vmap(lambda k: c.sample(k, w))(keys))
    base = K ** np.arange(T - 1, -1, -1)
    mixed = np.array([1.0, 0.0, 0.5, 1.0])
    pair = np.asarray(jax.jit(lambda c: c.pairwise(jnp.asarray(mixed)))(c), np.float64)
    with np.errstate(invalid="ignore"):
        follow = np.nan_to_num(pair / pair.sum(2, keepdims=True))
    law_mixed = pair[0].sum(1)[paths[:, 0]]
    for t in range(T - 1):
        law_mixed = law_mixed * follow[t, paths[:, t], paths[:, t + 1]]
    laws = [(np.ones(T), np.exp(log_w - np.logaddexp.reduce(log_w))), (mixed, law_mixed)]
    for weights, law in laws:
        counts = np.bincount(np.asarray(draw(c, jnp.asarray(weights))) @ base, minlength=K**T)
        assert counts[law == 0].sum() == 0
        common = runs * law > 20
        z = (counts - runs * law)[common] / np.sqrt(runs * law * (1 - law))[common]
        assert common.sum() >= 4 and np.abs(z).max() < 4
    best = np.asarray(draw(c, jnp.zeros(T)))
    np.testing.assert_array_equal(best, np.broadcast_to(paths[log_w.argmax()], best.shape))


def test_nothing_is_possible():
    c = FiniteChain(np.zeros(2), np.full((2, 2, 2), -np.inf))

    @jax.jit
    def answers(c, w):
        value, grads = jax.value_and_grad(lambda c: c.log_value(w))(c)
        sample = c.sample(jax.random.key(0), w)
        return value, c.log_value(w, parallel=True), grads, c.marginals(w), sample

    for w in jnp.array([0.0, 0.5, 1.0]):
        value, parallel, grads, marginals, sample = answers(c, w)
        assert value == parallel == -jnp.inf
        assert all(bool(jnp.all(g == 0)) for g in jax.tree.leaves(grads))
        assert jnp.all(jnp.isnan(marginals)) and sample.tolist() == [-1, -1, -1]


def test_hidden_markov_model():
    hmm = HiddenMarkovModel(
        log([0.6, 0.4, 0.0]),
        log([[0.5, 0.5, 0.0], [0.0, 0.3, 0.7], [0.2, 0.0, 0.8]]),
        log([[0.7, 0.0, 0.3], [0.1, 0.6, 0.3], [0.0, 0.5, 0.5]]),
    )
    ys = jnp.array([0, 2, 1, 1, 2])

    @jax.jit
    def both(hmm, ys):
        c, path = FiniteChain.of_hmm(hmm, ys), hmm.viterbi(ys)
        best = hmm.log_joint(path, ys)
        pairs = (
            (c.log_value(), hmm.log_evidence(ys)),
            (c.marginals(parallel=True), hmm.smoothed(ys)),
            (c.pairwise(), hmm.pairwise(ys)),
            (c.log_value(0.0), best),
            (c.log_weight(path), best),
        )
        return pairs, c.sample(jax.random.key(0), 0.0), path

    pairs, sample, path = both(hmm, ys)
    for got, want in pairs:
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert sample.tolist() == path.tolist()


def test_markov_language_model():
    lm = MarkovLM(log([0.5, 0.3, 0.2]), log([[0.2, 0.5, 0.3], [0.6, 0, 0.4], [1, 0, 0]]), EOS)
    g = np.random.default_rng(0).normal(size=(3, 3, 3))
    g[1, 0, 1] = -np.inf
    texts = jnp.array(list(itertools.product(range(3), repeat=3)))

    def both(lm, g, at_length):
        c = FiniteChain.of_lm(lm, g, at_length)
        best = c.sample(jax.random.key(0), 0.0)
        pairs = (
            (c.log_value(), lm.log_evidence(g, at_length)),
            (c.marginals()[:, :EOS], lm.marginals(g, at_length)[:, :EOS]),
            (c.log_value(0.0), lm.log_weight(best, g, at_length)),
        )
        log_w = jax.vmap(lambda x: lm.log_weight(x, g, at_length))(texts[:, : g.shape[0]])
        return pairs, jnp.max(log_w)

    @jax.jit
    def every(lm, g):
        endings = (ppl.Keep(), ppl.Reject())
        return [both(lm, g, e) for e in endings], both(lm, g[:1], endings[0])

    long, short = every(lm, jnp.asarray(g))
    for pairs, best in [*long, short]:
        for got, want in pairs:
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(pairs[2][0], best, rtol=1e-5)


def test_bad_questions():
    c = chain()
    with pytest.raises(ValueError, match="entropy weights are not negative"):
        c.log_value(-1.0)
    with pytest.raises(ValueError, match="share one entropy weight"):
        c.log_value(jnp.ones(T), parallel=True)
    with pytest.raises(ValueError, match=r"one number or \[4\]"):
        c.log_value(jnp.ones(3))
    with pytest.raises(ValueError, match="log_first must be"):
        FiniteChain(np.zeros((2, 2)), np.zeros((1, 2, 2)))
    with pytest.raises(ValueError, match="log_steps has shape"):
        FiniteChain(np.zeros(2), np.zeros((1, 3, 3)))
