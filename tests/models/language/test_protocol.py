"""Suffixes with gaps, prompts chosen by particle index, hidden vectors: against dense runs."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac.models.finite import MarkovLanguageModel, MarkovLM
from feynkac.models.language import from_callable, random_llama

V, SLOTS = 7, 19
PROMPTS = [[3, 1, 4, 1, 5], [2], [6, 5] * 9]


def _llama():
    return random_llama(jax.random.key(1), V, d=16, scale=2.0, context=80)


def _markov():
    table = jax.nn.log_softmax(jax.random.normal(jax.random.key(2), (V, V)))
    return MarkovLanguageModel(MarkovLM(table[0], table, 0))


def _callable():
    """Logits from the mean of all tokens so far: it sees a wrong place or a forgotten token."""
    table = jax.random.normal(jax.random.key(3), (V, V))

    def fn(params, tokens):
        x = jnp.cumsum(params[tokens], axis=0)
        return x / (1.0 + jnp.arange(tokens.shape[0]).astype(x.dtype))[:, None]

    return from_callable(fn, table, vocab_size=V, eos=0, context=64)


@pytest.mark.parametrize("make", [_llama, _markov, _callable])
def test_gaps_and_chosen_prompts_equal_dense_runs(make):
    """Each particle after a prompt of its own, writing at slots of its own."""
    lm, rng = make(), np.random.default_rng(0)
    prompts = lm.prompts(PROMPTS, bucket=8)
    tokens = jnp.asarray(rng.integers(0, V, (3, SLOTS)), jnp.int32)
    write = np.array(rng.random((3, SLOTS)) < 0.6)
    write[0, :3], write[1] = False, True

    @eqx.filter_jit
    def gapped(lm, prompts, tokens, write):
        def one(index, tokens, write):
            prefix = prompts.choose(index)

            def step(state, inputs):
                token, slot, write = inputs
                state = lm.advance(prefix, state, token, slot, write)
                return state, (state.logits, state.hidden)

            slots = jnp.arange(SLOTS, dtype=jnp.int32)
            start = lm.start(prefix, SLOTS, gaps=True)
            return start.logits, *jax.lax.scan(step, start, (tokens, slots, write))[1]

        return jax.vmap(one)(jnp.arange(3), tokens, write)

    first, logits, hidden = gapped(lm, prompts, tokens, jnp.asarray(write))
    replay = eqx.filter_jit(
        lambda *args: eqx.filter_vmap(lm.replay, in_axes=(None, None, 0, None))(*args, SLOTS)
    )
    slots = np.array([0, 2, 9, SLOTS - 1])
    for i, ids in enumerate(PROMPTS):
        prefix = lm.prompt(ids, bucket=40)
        dense = np.zeros(SLOTS, np.int32)
        dense[: write[i].sum()] = np.asarray(tokens[i])[write[i]]
        np.testing.assert_allclose(first[i], prefix.logits, atol=1e-5)
        counts = jnp.asarray(np.cumsum(write[i])[slots], jnp.int32)
        want = replay(prefix, jnp.asarray(dense), counts)
        np.testing.assert_allclose(logits[i, slots], want.logits, atol=2e-5)
        if hidden is not None:
            np.testing.assert_allclose(hidden[i, slots], want.hidden, atol=2e-5)


def test_a_chosen_prompt_copies_no_cache():
    prompts = _llama().prompts(PROMPTS, bucket=8)
    # An output that is mapped over the particles may not have the axis None.
    axes = jax.tree.map(lambda x: 0, prompts.choose(jnp.int32(0)))
    axes = eqx.tree_at(lambda prefix: prefix.cache, axes, None)
    prefix = jax.vmap(prompts.choose, out_axes=axes)(jnp.arange(3))
    assert prefix.cache[0].keys.shape == prompts.cache[0].keys.shape


@pytest.mark.slow
def test_hidden_is_what_the_logits_are_read_from():
    lm = _llama()
    prefix = lm.prompt([1, 2])
    state = lm.advance(prefix, lm.start(prefix, 3), jnp.int32(4), jnp.int32(0))
    for x in (prefix, state):
        np.testing.assert_allclose(x.hidden @ lm.head.T, x.logits, rtol=1e-5)


def test_writing_nothing_needs_gaps():
    lm = _markov()
    prefix = lm.prompt([1])
    with pytest.raises(ValueError, match="gaps=True"):
        lm.advance(prefix, lm.start(prefix, 3), jnp.int32(1), jnp.int32(0), jnp.zeros((), bool))
    with pytest.raises(ValueError, match="at least one prompt"):
        lm.prompts([])
