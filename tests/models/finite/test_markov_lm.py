import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac import ppl
from feynkac.models.finite import MarkovLM

EOS, V, T = 2, 4, 4


def log(p):
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(p, dtype=float))


def sparse_lm():
    """Four tokens with zeros; the row of `eos` is garbage, because it is never used."""
    return MarkovLM(
        log([0.5, 0.3, 0.2, 0.0]),
        log([[0.1, 0.6, 0.3, 0.0], [0.4, 0.0, 0.1, 0.5], [9.0] * 4, [0.0, 0.25, 0.5, 0.25]]),
        eos=EOS,
    )


def potential():
    """Random potentials over five orders of magnitude, a fifth of them zero."""
    rng = np.random.default_rng(1)
    g = rng.normal(scale=3.0, size=(T, V, V)) + 6.0 * (rng.random((T, V, V)) < 0.2)
    return jnp.asarray(np.where(rng.random((T, V, V)) < 0.2, -np.inf, g), dtype=float)


def enumerate_texts(lm, log_potential, reject):
    """Every text of at most T tokens, zero-filled, its length (T+1: unfinished) and weight."""
    initial, transition, g = (
        np.exp(np.asarray(a, dtype=float))
        for a in (lm.log_initial, lm.log_transition, log_potential)
    )
    found = {}
    for tokens in itertools.product(range(V), repeat=T):
        weight, text, previous = 1.0, [0] * T, None
        length = T + 1
        for t, token in enumerate(tokens):
            p = initial[token] if previous is None else transition[previous, token]
            weight *= p * g[t, EOS if previous is None else previous, token]
            text[t], previous = token, token
            if token == EOS:
                length = t + 1
                break
        found[tuple(text)] = (length, 0.0 if reject and length > T else weight)
    texts = np.array(list(found))
    lengths, weights = np.array(list(found.values())).T
    return texts, lengths.astype(int), weights


def test_hand_computed_two_token_model():
    # a (token 0) or eos (token 1): p(eos) = 1/4 at first, then 1/2.
    lm = MarkovLM(log([0.75, 0.25]), log([[0.5, 0.5], [0.5, 0.5]]), eos=1)
    np.testing.assert_allclose(lm.prob_ended(2), 0.25 + 0.75 * 0.5, rtol=1e-6)
    law = lm.length_law(lm.no_potential(3))
    np.testing.assert_allclose(law, [0.25, 0.375, 0.1875, 0.1875], rtol=1e-6)
    kept = lm.log_evidence(lm.no_potential(3))
    rejected = lm.log_evidence(lm.no_potential(3), ppl.Reject())
    np.testing.assert_allclose(kept, 0.0, atol=1e-6)
    np.testing.assert_allclose(rejected, np.log(1 - 0.1875), rtol=1e-5)
    doubled = lm.no_potential(2).at[1, 0, 0].set(np.log(2.0))
    np.testing.assert_allclose(jnp.exp(lm.log_evidence(doubled)), 1.375, rtol=1e-6)


@pytest.mark.parametrize("at_length", [ppl.Keep(), ppl.Reject()], ids=["keep", "reject"])
@pytest.mark.x64
def test_exact_quantities_match_enumeration(at_length):
    lm, g = sparse_lm(), potential()
    texts, lengths, weights = enumerate_texts(lm, g, isinstance(at_length, ppl.Reject))
    total = weights.sum()
    assert (weights > 0).sum() > 5
    post = weights / total
    evidence, law, pairwise, marginals, future, each = jax.jit(
        lambda m, g: (
            m.log_evidence(g, at_length),
            m.length_law(g, at_length),
            m.pairwise(g, at_length),
            m.marginals(g, at_length),
            m.log_future(g, at_length),
            jax.vmap(lambda x: m.log_weight(x, g, at_length))(jnp.asarray(texts)),
        )
    )(lm, g)
    close = {"rtol": 1e-12} if evidence.dtype == jnp.float64 else {"rtol": 1e-4}
    np.testing.assert_allclose(evidence, np.log(total), **close)
    np.testing.assert_allclose(np.exp(each), weights, atol=1e-9, **close)
    expected = [post[lengths == n].sum() for n in range(1, T + 2)]
    np.testing.assert_allclose(law, expected, atol=1e-9, **close)
    for t, v in itertools.product(range(T), range(V)):
        made = (lengths > t) & (texts[:, t] == v)
        np.testing.assert_allclose(marginals[t, v], post[made].sum(), atol=1e-9, **close)
        for u in range(V):
            if t == 0:
                expected = post[made].sum() if u == EOS else 0.0
            else:
                expected = post[made & (texts[:, t - 1] == u)].sum()
            np.testing.assert_allclose(pairwise[t, u, v], expected, atol=1e-9, **close)
    # The twist after a prefix is the mean weight of what follows.
    past = lm.log_past(g)
    for t, v in itertools.product(range(1, T + 1), range(V)):
        through = (lengths >= t) & (texts[:, t - 1] == v)
        split = np.exp(np.asarray(past[t, v] + future[t, v], dtype=float))
        np.testing.assert_allclose(split, weights[through].sum(), atol=1e-9, **close)
    assert jnp.all(future[1:, EOS] == 0)


def test_posterior_samples_follow_the_enumerated_law():
    lm, g = sparse_lm(), potential()
    runs = 20_000
    keys = jax.random.split(jax.random.key(0), runs)
    for at_length in (ppl.Keep(), ppl.Reject()):
        texts, _, weights = enumerate_texts(lm, g, isinstance(at_length, ppl.Reject))
        draws = jax.jit(jax.vmap(lambda k, a=at_length: lm.posterior_sample(k, g, a)))(keys)
        base = V ** np.arange(T)
        counts = np.bincount(np.asarray(draws) @ base, minlength=V**T)
        index = texts @ base
        assert counts[index].sum() == runs
        assert counts[index[weights == 0]].sum() == 0
        law = weights / weights.sum()
        common = runs * law > 20
        z = (counts[index] - runs * law)[common] / np.sqrt(runs * law * (1 - law))[common]
        assert common.sum() >= 4
        assert np.abs(z).max() < 4


def test_gradient_of_the_evidence_is_the_pairwise_law():
    lm, g = sparse_lm(), potential()
    grads, wrt_lm = eqx.filter_grad(lambda gm: gm[1].log_evidence(gm[0], ppl.Reject()))((g, lm))
    pairwise = lm.pairwise(g, ppl.Reject())
    np.testing.assert_allclose(grads, pairwise, atol=1e-6)
    np.testing.assert_allclose(wrt_lm.log_initial, pairwise[0, EOS], atol=1e-6)
    assert jnp.all(wrt_lm.log_transition[EOS] == 0)
    total = pairwise[1:].sum(0)
    np.testing.assert_allclose(wrt_lm.log_transition, total, atol=1e-6)


def test_impossible_potential():
    lm = sparse_lm()
    forbidden = jnp.full((T, V, V), -jnp.inf)
    value, grads = jax.value_and_grad(lm.__class__.log_evidence, argnums=1)(lm, forbidden)
    assert value == -jnp.inf
    assert jnp.all(grads == 0)
    assert jnp.all(jnp.isnan(lm.marginals(forbidden)))
    assert jnp.all(jnp.isnan(lm.length_law(forbidden)))
    assert lm.posterior_sample(jax.random.key(0), forbidden).tolist() == [-1] * T
    never = lm.no_potential(T).at[:, :, EOS].set(-jnp.inf)
    assert lm.log_evidence(never, ppl.Reject()) == -jnp.inf
    assert jnp.isfinite(lm.log_evidence(never))


def test_overconfident_potential_does_not_overflow():
    lm = sparse_lm()
    huge = lm.no_potential(T) + 200.0
    law = lm.length_law(lm.no_potential(T))
    log_law = jnp.log(law) + 200.0 * jnp.minimum(jnp.arange(1.0, T + 2), T)
    np.testing.assert_allclose(lm.log_evidence(huge), jax.nn.logsumexp(log_law), rtol=1e-5)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((log([0.5, 0.5]), log(np.eye(2)), 2), r"eos must be in 0\.\.1"),
        ((log([0.5, 0.5]), log(np.eye(2)), -1), r"eos must be in 0\.\.1"),
        ((log([0.5, 0.5]), log(np.full((2, 2), 0.4)), 1), "row 0"),
        ((log([0.5, 0.4]), log(np.eye(2)), 1), "log_initial must hold"),
        ((log([0.5, 0.5]), log(np.eye(3)), 1), "log_transition has shape"),
        ((log(np.eye(2)), log(np.eye(2)), 1), r"must be \[V\]"),
    ],
)
def test_bad_models_are_errors(args, message):
    with pytest.raises(ValueError, match=message):
        MarkovLM(*args)


def test_bad_questions_are_errors():
    lm = sparse_lm()
    with pytest.raises(ValueError, match=r"log_potential must be \[T, V, V\]"):
        lm.log_evidence(jnp.zeros((T, V + 1, V + 1)))
    with pytest.raises(ValueError, match=r"log_potential must be \[T, V, V\]"):
        lm.log_evidence(lm.no_potential(0))
    with pytest.raises(ValueError, match=r"tokens must be in 0\.\.3"):
        lm.log_weight(jnp.array([0, 4]), lm.no_potential(2))


@pytest.mark.parametrize("at_length", [ppl.Keep(), ppl.Reject()], ids=["keep", "reject"])
@pytest.mark.x64
def test_program_has_the_same_law(at_length):
    lm, g = sparse_lm(), potential()
    texts, _, weights = enumerate_texts(lm, g, isinstance(at_length, ppl.Reject))
    model = lm.state_space(g, at_length)
    log_p = jax.jit(jax.vmap(lambda x: model.assess({"token": x})[0]))(jnp.asarray(texts))
    np.testing.assert_allclose(np.exp(log_p), weights, rtol=1e-4, atol=1e-9)


@pytest.mark.slow
def test_program_is_properly_weighted_for_the_evidence():
    lm = sparse_lm()
    g = jnp.clip(potential(), None, 1.0)
    model = lm.state_space(g, ppl.Reject())
    keys = jax.random.split(jax.random.key(7), 20_000)
    traces, log_w = jax.jit(jax.vmap(lambda k: model.generate(k, {})))(keys)
    weights = np.exp(np.asarray(log_w, dtype=float))
    evidence = np.exp(float(lm.log_evidence(g, ppl.Reject())))
    assert abs(weights.mean() - evidence) / weights.std() * np.sqrt(len(weights)) < 4
    scored = jax.vmap(lambda x: lm.log_weight(x, g, ppl.Reject()))(traces.choices["token"])
    np.testing.assert_allclose(traces.score + traces.log_weight, scored, rtol=1e-4)


def test_after_a_prompt():
    lm = sparse_lm()
    following = lm.after(1)
    np.testing.assert_allclose(following.log_initial, lm.log_transition[1])
    assert eqx.tree_equal(lm.after(EOS), lm)
