"""Rewards on the device against enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.host_texts import EOS, LM, PROMPT, log_p, texts

from feynkac import models, ppl
from feynkac.models.rewards import DeviceReward, TokenReward

STEPS = 4
TABLE = np.array([0.3, -0.2, 0.7, -np.inf])
ROWS = jnp.array([(list(x) + [EOS] * STEPS)[:STEPS] for x in texts(STEPS)], jnp.int32)


def ones(tokens, count, nats):
    """Nats for every token 1 that was written."""
    inside = jnp.arange(tokens.shape[0]) < count
    return nats * jnp.sum(inside & (tokens == 1)).astype(float)


@pytest.mark.parametrize("prefixes", [False, True])
def test_the_target_is_the_model_times_the_rewards(prefixes):
    by_tokens, by_count = TokenReward(TABLE), DeviceReward(ones, jnp.array(0.4), prefixes=prefixes)
    story = models.generation(LM, [PROMPT], STEPS) * by_tokens * by_count
    density = jax.jit(jax.vmap(lambda x: ppl.Target(story).log_density({"token": x})))
    want = [log_p(x) + TABLE[[*x, EOS]].sum() + 0.4 * x.count(1) for x in texts(STEPS)]
    np.testing.assert_allclose(density(ROWS), want, atol=1e-5)


def test_what_is_unfinished():
    row = jnp.array([1, 2, 1, 2], jnp.int32)
    for prefixes in (False, True):
        reward = DeviceReward(ones, jnp.array(0.4), prefixes=prefixes)
        story = models.generation(LM, [PROMPT], STEPS, at_length=ppl.Keep()) * reward
        want = log_p([1, 2, 1, 2], ended=False) + (0.8 if prefixes else 0.0)
        assert np.isclose(ppl.Target(story).log_density({"token": row}), want, atol=1e-5)


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="token_table"):
        TokenReward(jnp.zeros((2, 3)))
    with pytest.raises(ppl.ProgramError, match="over"):
        TokenReward(TABLE).start(3)
    story = models.generation(LM, [PROMPT], 2) * DeviceReward(lambda tokens, count: tokens)
    with pytest.raises(ValueError, match="one number"):
        story.simulate(jax.random.key(0))
