"""Text as a state space: exact laws on a Markov model, hot state, replay, readings, tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac import inference, models, ppl
from feynkac.models.finite import MarkovLanguageModel, MarkovLM
from feynkac.models.language import random_llama

EOS, T = 0, 4
LAW = MarkovLM(
    jnp.log(jnp.array([0.1, 0.5, 0.4])),
    jnp.log(jnp.array([[0.2, 0.4, 0.4], [0.3, 0.6, 0.1], [0.25, 0.0, 0.75]])),
    EOS,
)
LM = MarkovLanguageModel(LAW)
AFTER = LAW.after(1)  # the law of texts after a prompt that ends in token 1


@pytest.fixture(scope="module")
def words():
    """A tokenizer of four tokens, the first of them special."""
    import tokenizers

    from feynkac.models.language import Tokenizer

    vocabulary = {"<end>": 0, "a": 1, "b": 2, "c": 3}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="a"))
    core.add_special_tokens(["<end>"])
    return Tokenizer(core, eos=0)


def test_generation_has_the_models_law():
    model = models.generation(LM, [1], T)
    exact = inference.exact.enumerate(model)
    assert np.isclose(exact.log_evidence, 0.0, atol=1e-5)
    marginals = exact.expectation(lambda c: jax.nn.one_hot(c["token"], 3))
    # Zeros after the end are the end's own id here: count only tokens that are not it.
    potential = AFTER.no_potential(T)
    np.testing.assert_allclose(marginals[:, 1:], AFTER.marginals(potential)[:, 1:], atol=1e-5)


def test_reject_is_the_law_of_what_ends():
    model = models.generation(LM, [1], T, at_length=ppl.Reject())
    exact = inference.exact.enumerate(model)
    assert np.isclose(exact.log_evidence, jnp.log(AFTER.prob_ended(T)), atol=1e-5)


def test_temperature_is_an_argument_of_the_law():
    model = models.generation(LM, [1], 1, temperature=0.5)
    probabilities = jax.nn.softmax(LM.prompt([1]).logits / 0.5)
    exact = inference.exact.enumerate(model)
    for token in range(3):
        log_p = exact.log_prob({"token": jnp.array([token], jnp.int32)})
        assert np.isclose(log_p, jnp.log(probabilities[token]), atol=1e-5)


def test_smc_evidence_of_a_constraint_is_unbiased():
    mask = jnp.array([True, True, False])
    story = _constrained(mask)
    potential = jnp.broadcast_to(jnp.where(mask, 0.0, -jnp.inf), (T, 3, 3))
    truth = AFTER.log_evidence(potential, ppl.Reject())
    assert np.isclose(inference.exact.enumerate(story).log_evidence, truth, atol=1e-5)
    result = ppl.laws.unbiased_evidence(jax.random.key(0), inference.SMC(4), story, truth)
    assert result.ok, result


def _constrained(mask):
    def init(ctx, lm, prefix, mask):
        return models.Text.start(lm, prefix, T)

    def step(ctx, text, t, lm, prefix, mask):
        token = ctx.sample("token", ppl.Token(text.logits))
        ctx.factor("allowed", jnp.where(mask[token], 0.0, -jnp.inf))
        return text.write(lm, prefix, token, t)

    model = ppl.StateSpace(init, step, T, done=models.ended, at_length=ppl.Reject())
    return ppl.bind(model, LM, LM.prompt([1]), mask)


@pytest.fixture(scope="module")
def llama_run():
    lm = random_llama(jax.random.key(0), 40)
    model = models.generation(lm, [3, 1, 4, 1, 5], 6)
    return lm, model, inference.SMC(8).run(jax.random.key(1), model)


@pytest.mark.slow
def test_results_hold_no_cache(llama_run):
    lm, model, particles = llama_run
    assert particles.state.hot.value is None
    size = sum(x.nbytes for x in jax.tree.leaves(particles))
    cache = sum(x.nbytes for x in jax.tree.leaves(lm.start(lm.prompt([1]), 6)))
    assert size < 8 * cache / 4


@pytest.mark.slow
def test_replay_rebuilds_the_state(llama_run):
    lm, model, particles = llama_run
    alive = int(jnp.argmax(particles.lengths))
    choices = jax.tree.map(lambda x: x[alive], particles.choices)
    count = int(particles.lengths[alive]) - 1
    fast = model.replay(choices, jnp.int32(count))
    slow = model.run_to(None, _given(choices), (), jnp.int32(count)).retval
    np.testing.assert_allclose(fast.logits, slow.logits, atol=1e-4)
    assert fast.last == slow.last and bool(fast.ended) == bool(slow.ended)


def _given(choices):
    from feynkac.ppl.partial import as_given

    return as_given(choices)


def test_length_has_to_be_positive():
    with pytest.raises(ValueError, match="max_tokens"):
        models.generation(LM, [1], 0)


def test_texts_merge_equal_ones_and_sum_to_one(words):
    lm = MarkovLanguageModel(_four(), tokenizer=words)
    particles = inference.SMC(64).run(jax.random.key(0), models.generation(lm, [1], 3))
    readings = models.texts(lm, particles)
    assert np.isclose(sum(r.probability for r in readings), 1.0)
    assert sum(r.particles for r in readings) == 64
    assert len({(r.text, r.finished) for r in readings}) == len(readings)
    assert [r.probability for r in readings] == sorted(r.probability for r in readings)[::-1]
    assert all("<end>" not in r.text for r in readings)


def _four():
    return MarkovLM(jnp.log(jnp.ones(4) / 4), jnp.log(jnp.ones((4, 4)) / 4), 0)


def test_token_table(words):
    lm = MarkovLanguageModel(_four(), tokenizer=words)
    mask = models.token_table(lm, lambda s: s != "b")
    assert mask.dtype == bool and mask.tolist() == [True, True, False, True]
    reward = models.token_table(lm, lambda s: {"c": 2.0}.get(s, 0.0))
    assert reward.tolist() == [0.0, 0.0, 0.0, 2.0]
    with pytest.raises(ValueError, match="forbids every token"):
        models.token_table(lm, lambda s: False)
    with pytest.raises(ValueError, match="NaN for the token b'c'"):
        models.token_table(lm, lambda s: float("nan") if s == "c" else 0.0)
    with pytest.raises(ValueError, match="no tokenizer"):
        models.token_table(LM, lambda s: True)
