"""A second language model's opinion of the text, as a potential: products of experts.

Products, quotients and powers of models are over whole texts: what a step's normalizer leaves out
is in the weights, so that the target is prod_k p_k(x)^lambda_k, and not the law of adding logits
token by token, which is another one. Contrast: Li et al. (2023), "Contrastive decoding"; small
models that steer a large one: Liu et al. (2024), "Tuning language models by proxy".
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ...ppl.hot import Hot
from ...ppl.potential import Potential
from .protocol import LanguageModel, Prefix, Prompt
from .writing import Generation, generation


@jax.custom_batching.custom_vmap
def largest(number: Int[Array, ""]) -> Int[Array, ""]:
    """The number; under `vmap` the largest of the batch, one for all members."""
    return number


@largest.def_vmap
def _largest_vmap(axis_size, in_batched, number):
    return largest(jnp.max(number, axis=0) if in_batched[0] else number), False


class Opinion(eqx.Module):
    """The state of a `LanguageModelPotential`: the model's, the next slot, and log p so far."""

    hot: Hot
    slot: Int[Array, ""]
    log_prob: Float[Array, ""]


class LanguageModelPotential(Potential):
    """p(x) of a language model after a prompt, as the weight of a text x, end of text included.

    The model may be another one with the same tokens, or the same one with another prompt:

        story * LanguageModelPotential(lm, b)             # what both prompts make likely
        story * LanguageModelPotential(small, a) ** -0.5  # contrast with a weaker model
        story * (LanguageModelPotential(tuned, a) / LanguageModelPotential(plain, a))  # by proxy

    Law: log_complete(x) = log prod_t softmax(logits_t / temperature)[x_t] (nats), of which
    log_prefix is the part so far. It knows log_next, so that draws are from the normalized product
    of the next tokens' laws, and the normalizer is the weight: the product of the whole laws. One
    forward pass of the model a token. Particles that share a step are at the same token, so that
    its cache is written in place.
    """

    lm: LanguageModel
    prefix: Prefix
    temperature: Float[Array, ""]

    def __init__(self, lm: LanguageModel, prompt: Prompt | Prefix, temperature: Any = 1.0):
        self.lm = lm
        self.prefix = prompt if isinstance(prompt, Prefix) else lm.prompt(prompt)
        self.temperature = jnp.asarray(temperature, dtype=float)

    @property
    def waits(self) -> bool:
        """Yes: a cache is not copied."""
        return True

    def start(self, length: int) -> Opinion:
        """See `Potential.start`."""
        state = self.lm.start(self.prefix, length, gaps=True)
        return Opinion(Hot(state), jnp.zeros((), jnp.int32), jnp.zeros(()))

    def advance(self, state: Opinion, symbol: Int[Array, ""], context: Any = None) -> Opinion:
        """See `Potential.advance`; a negative symbol is none and leaves the state as it is."""
        there = symbol >= 0
        token = jnp.maximum(symbol, 0)
        slot = largest(state.slot)
        log_prob = state.log_prob + jnp.where(there, self._log_probs(state)[token], 0.0)
        model = self.lm.advance(self.prefix, state.hot.value, token, slot, there)
        return Opinion(Hot(model), jnp.where(there, slot + 1, state.slot), log_prob)

    def log_prefix(self, state: Opinion, remaining: Any = None) -> Float[Array, ""]:
        """See `Potential.log_prefix`."""
        return state.log_prob

    def log_complete(self, state: Opinion, context: Any = None) -> Float[Array, ""]:
        """See `Potential.log_complete`."""
        return state.log_prob + self._log_probs(state)[self.lm.eos]

    def log_next(self, state: Opinion, remaining: Any = None) -> Float[Array, "V"]:
        """See `Potential.log_next`."""
        return self._log_probs(state)

    def over(self, vocabulary: Any) -> "LanguageModelPotential":
        """Itself; the model must have the vocabulary's end-of-text token."""
        if vocabulary.eos != self.lm.eos:
            raise ValueError(
                f"the text ends with token {vocabulary.eos}, but for the model of this potential "
                f"with {self.lm.eos}: use models with the same tokens"
            )
        return self

    def _log_probs(self, state: Opinion) -> Float[Array, "V"]:
        logits = state.hot.value.logits
        log_probs = jax.nn.log_softmax(logits / self.temperature.astype(logits.dtype))
        return log_probs.astype(state.log_prob.dtype)


def intersection(
    lm: LanguageModel, prompts: Sequence[Prompt | Prefix], max_tokens: int, **options: Any
) -> Generation:
    """Texts that every one of several prompts makes likely: p(x) = prod_k p(x | prompt k) / Z.

    Law: over the texts that end within `max_tokens` tokens; the evidence Z is the probability that
    independent texts, one after each prompt, are the same text. `options` are those of
    `generation`. Draws are from the normalized product of next-token laws, corrected by weights.
    For other exponents multiply `generation` by `LanguageModelPotential(lm, prompt) ** exponent`.
    """
    if len(prompts) < 2:
        raise ValueError("an intersection is of at least two prompts; one is a generation")
    model = generation(lm, prompts[0], max_tokens, **options)
    for prompt in prompts[1:]:
        model = model * LanguageModelPotential(lm, prompt)
    return model
