"""SmolLM2 against `transformers` in float64: stored by benchmarks/logits_vs_transformers.py."""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

ORACLE = Path(__file__).parents[2] / "oracles" / "smollm2_logits.npz"
TEXTS = ("chat", "code", "prose")
SIZE = 17


@pytest.fixture(scope="module")
def stored():
    with np.load(ORACLE) as file:
        return dict(file)


@eqx.filter_jit
def run(lm, prefix, tokens):
    """Logits at every position of each text [SIZE], and log-probs after its first token."""

    def step(state, inputs):
        state = jax.vmap(lm.advance, in_axes=(0, 0, 0, None))(prefix, state, *inputs)
        return state, state.logits

    start = jax.vmap(lambda prefix: lm.start(prefix, SIZE - 1))(prefix)
    slots = jnp.arange(SIZE - 1, dtype=jnp.int32)
    logits = jax.lax.scan(step, start, (tokens[:, 1:].T, slots))[1].swapaxes(0, 1)
    logits = jnp.concatenate([prefix.logits[:, None], logits], axis=1)
    return logits, jax.vmap(lm.log_probs)(prefix, tokens[:, 1:])


@pytest.mark.slow
def test_logits_equal_transformers(smollm2, stored):
    tokens = np.stack([stored[f"{text}.ids"][:SIZE] for text in TEXTS])
    prefixes = [smollm2.prompt(row[:1], bucket=80) for row in tokens]
    prefix = jax.tree.map(lambda *leaves: jnp.stack(leaves), *prefixes)
    results = run(smollm2, prefix, jnp.asarray(tokens))
    for text, logits, log_probs in zip(TEXTS, *results, strict=True):
        logits = np.asarray(logits, np.float64)
        entries, argmax = stored[f"{text}.entries"], stored[f"{text}.argmax"]
        for got, key in (
            (logits[:, entries], "logits"),
            (np.log(np.exp(logits).sum(-1)), "logsumexp"),
            (log_probs, "log_probs"),
        ):
            want = stored[f"{text}.{key}"][: len(got)]
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-3)
        np.testing.assert_array_equal(logits.argmax(-1), argmax[:SIZE])


def test_prompt_equals_transformers(smollm2, stored):
    for text in TEXTS:
        logits = np.asarray(smollm2.prompt(stored[f"{text}.ids"], bucket=80).logits)
        want = stored[f"{text}.logits"][-1]
        np.testing.assert_allclose(logits[stored[f"{text}.entries"]], want, rtol=0, atol=1e-3)


def test_chat_prompt_tokens(smollm2, stored):
    """The ids that the oracle was fed are what the tokenizer gives today."""
    text = smollm2.tokenizer.decode(stored["chat.ids"], special=True)
    assert text.endswith("<|im_start|>assistant\n")
    assert smollm2.tokenizer.encode(text) == stored["chat.ids"].tolist()


def test_sizes(smollm2):
    assert (smollm2.vocab_size, smollm2.context, smollm2.eos) == (49152, 8192, 2)
    assert smollm2.head is None and len(smollm2.layers) == 30
    assert sum(x.size for x in jax.tree.leaves(smollm2)) == 134_515_008
    assert {x.dtype for x in jax.tree.leaves(smollm2)} == {jnp.dtype(jnp.float32)}
