import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac.models.finite import MarkovLanguageModel, MarkovLM

EOS = 2


def markov():
    p = np.array([[0.1, 0.6, 0.3], [0.5, 0.0, 0.5], [0.2, 0.3, 0.5]])
    with np.errstate(divide="ignore"):
        return MarkovLM(np.log([0.7, 0.3, 0.0]), np.log(p), eos=EOS)


@pytest.mark.parametrize(("prompt", "last"), [([], EOS), ([1, 0], 0), ([0, 1], 1)])
@pytest.mark.x64
def test_texts_have_the_law_of_what_follows_the_prompt(prompt, last):
    model = MarkovLanguageModel(markov())
    prefix = model.prompt(prompt)
    following = markov().after(last)
    texts = jnp.array([[0, 1, 0, 2], [1, 0, 0, 1], [0, 0, 2, 0], [1, 1, 0, 2], [2, 0, 0, 0]])
    none = following.no_potential(4)
    for text in texts:
        ended = np.flatnonzero(np.asarray(text) == EOS)
        tokens = text[: ended[0] + 1] if len(ended) else text
        expected = following.log_weight(text, none)
        np.testing.assert_allclose(jnp.sum(model.log_probs(prefix, tokens)), expected, rtol=1e-5)


def test_advance_and_replay_agree():
    model = MarkovLanguageModel(markov())
    prefix = model.prompt([1])
    tokens = jnp.array([0, 0, 1, 0])
    state = model.start(prefix, 4)
    for slot in range(4):
        replayed = model.replay(prefix, tokens, jnp.asarray(slot), 4)
        assert jnp.array_equal(replayed.logits, state.logits)
        expected = model.log_probs(prefix, tokens)[slot]
        assert state.logits[tokens[slot]] == expected
        state = model.advance(prefix, state, tokens[slot], jnp.asarray(slot))
    empty = model.replay(prefix, tokens[:0], jnp.asarray(0), 4)
    assert jnp.array_equal(empty.logits, prefix.logits)


def test_particles_share_the_prefix_under_vmap():
    model = MarkovLanguageModel(markov())
    prefix = model.prompt([0])
    start = model.start(prefix, 2)
    tokens = jnp.array([0, 1])
    states = jax.vmap(lambda token: model.advance(prefix, start, token, jnp.asarray(0)))(tokens)
    assert jnp.array_equal(states.logits, markov().log_transition[:2])


def test_room_is_checked():
    model = MarkovLanguageModel(markov(), context=4)
    with pytest.raises(ValueError, match="exceed the context"):
        model.start(model.prompt([0, 1]), 3)
    with pytest.raises(ValueError, match="max_tokens=1"):
        model.replay(model.prompt([0]), jnp.array([0, 1]), jnp.asarray(1), 1)
