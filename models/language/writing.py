"""Text as a state-space model: one token a step."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ...ppl.distributions import Token
from ...ppl.hot import Hot
from ...ppl.partial import Choices
from ...ppl.program import bind
from ...ppl.state_space import AtLength, Keep, StateSpace
from .protocol import LanguageModel, Prefix, Prompt, State


class Text(eqx.Module):
    """The state of a particle that writes: the model's, the last token, and whether it ended."""

    hot: Hot
    last: Int[Array, ""]
    ended: Bool[Array, ""]

    @property
    def logits(self) -> Float[Array, "V"]:
        """Next-token logits, nats up to a constant."""
        return self.hot.value.logits

    @staticmethod
    def start(lm: LanguageModel, prefix: Prefix, max_tokens: int) -> "Text":
        """Nothing written yet after the prompt; room for `max_tokens` tokens."""
        state = lm.start(prefix, max_tokens)
        return Text(Hot(state), jnp.full((), lm.eos, jnp.int32), jnp.zeros((), bool))

    def write(
        self, lm: LanguageModel, prefix: Prefix, token: Int[Array, ""], t: Int[Array, ""]
    ) -> "Text":
        """The state after `token` at step t; the end-of-text token ends it."""
        state = lm.advance(prefix, self.hot.value, token, t)
        return Text(Hot(state), token.astype(jnp.int32), token == lm.eos)


def ended(text: Text) -> Bool[Array, ""]:
    """The `done` predicate of a StateSpace whose state is a `Text`."""
    return text.ended


def generation(
    lm: LanguageModel,
    prompt: Prompt | Prefix,
    max_tokens: int,
    temperature: Any = 1.0,
    at_length: AtLength | None = None,
) -> StateSpace:
    """The language model writing after a prompt, as a StateSpace with site "token".

    Law: tokens from softmax(logits / temperature) until end of text, at most `max_tokens`; the
    end-of-text token is part of the text. The weights and the prompt's cache are bound to the
    model: stored once, shared by all particles. `prompt` is a text, chat messages, token ids, or a
    `Prefix` from `lm.prompt`. New weights, prompts of the same padded length and temperatures
    compile nothing.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens is the number of steps, at least 1; got {max_tokens}")
    prefix = prompt if isinstance(prompt, Prefix) else lm.prompt(prompt)
    lm.check_room(prefix, max_tokens)

    def init(ctx, lm, prefix, temperature):
        return Text.start(lm, prefix, max_tokens)

    def step(ctx, text, t, lm, prefix, temperature):
        token = ctx.sample("token", Token(text.logits / temperature))
        return text.write(lm, prefix, token, t)

    def replay(choices: Choices, t, lm, prefix, temperature):
        return rebuilt(lm, prefix, choices["token"], t, max_tokens)

    model = StateSpace(
        init, step, max_tokens, done=ended, at_length=at_length or Keep(), replay=replay
    )
    return bind(model, lm, prefix, jnp.asarray(temperature, dtype=float))


def rebuilt(
    lm: LanguageModel, prefix: Prefix, tokens: Int[Array, "T"], t: Int[Array, ""], max_tokens: int
) -> Text:
    """The state after the first t of `tokens`, by one teacher-forced pass."""
    steps = jnp.arange(tokens.shape[0])
    over = jnp.any((tokens == lm.eos) & (steps < t))
    state: State = lm.replay(prefix, tokens, t, max_tokens)
    last = jnp.where(t > 0, tokens[jnp.maximum(t - 1, 0)], lm.eos).astype(jnp.int32)
    return Text(Hot(state), jnp.where(over, lm.eos, last), over)
