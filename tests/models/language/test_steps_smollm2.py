"""Sentences by SmolLM2: weights of a filter against a pass over what it wrote."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac import inference, ppl
from feynkac.models.language.calls import told_by
from feynkac.models.language.delimiters import SENTENCE
from feynkac.models.language.step_reading import step_texts
from feynkac.models.language.step_rewards import StepReward
from feynkac.models.language.steps import stepwise


def _short(step):
    return -0.1 * step.count.astype(float)


@pytest.mark.slow
def test_sentences_are_weighed_as_written(smollm2):
    lm = smollm2
    prompt = lm.prompt([{"role": "user", "content": "Tell me about the sea in three sentences."}])
    story = stepwise(lm, prompt, 2, 14, SENTENCE, at_length=ppl.Keep()) * StepReward(_short)
    particles = inference.SMC(4, None).run(jax.random.key(0), story, throw=True)
    state = particles.state
    place = jnp.arange(state.tokens.shape[1])
    tokens = jnp.where(place[None] < state.count[:, None], state.tokens, lm.eos)
    np.testing.assert_allclose(particles.log_weights, -0.1 * state.count.astype(float), rtol=1e-5)
    log_probs = jax.lax.map(lambda x: lm.log_probs(prompt, x), tokens)
    end = state.count + state.ended.astype(jnp.int32)
    written = jnp.where(place[None] < end[:, None], log_probs, 0.0).sum(1)
    said = jax.lax.map(ppl.Target(story).log_density, particles.choices)
    np.testing.assert_allclose(said, written + particles.log_weights, atol=2e-2)
    for reading in step_texts(lm, particles):
        print(reading)
    columns = (tokens, state.ends, particles.lengths)
    for row, ends, lengths in zip(*map(np.asarray, columns), strict=True):
        sentence = lm.tokenizer.decode(row[: ends[0]])
        assert lengths == 1 or ends[0] == 14 or any(c in sentence for c in SENTENCE)
        assert not any(c in lm.tokenizer.decode(row[: ends[0] - 1]) for c in SENTENCE)
    assert told_by(lm, "Why?").startswith("<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>")
