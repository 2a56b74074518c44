"""A reward head: a small network on a model's hidden state that says how good a text is."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from ...inference import vi
from ...ppl.compiled import compiled
from ...ppl.potential import Potential
from ..language.protocol import LanguageModel, Prefix, Prompt
from ..learned.head import Head
from ..learned.head import head as learned_head


class RewardHead(Potential):
    """Weight sigmoid(f(h)): the probability that a text is good, as learned.

    `f` is a `learned.Head`, [D] to one number, and h [D] the hidden state of the model that writes
    after the last token of the text. While a text is written it has weight 1; with `early` the
    weight that the head gives to it without its last token.
    """

    head: Head
    early: bool = eqx.field(static=True, default=False)

    @property
    def reads_model(self) -> bool:
        """Its hidden state."""
        return True

    def logit(self, hidden: Float[Array, "D"]) -> Float[Array, ""]:
        """Log odds of a good text."""
        return self.head(hidden).reshape(())

    def start(self, length):
        """The weight on the way."""
        return jnp.zeros(())

    def advance(self, state, symbol, context=None):
        """The weight before this symbol, with `early`."""
        return self._log_weight(context).astype(state.dtype) if self.early else state

    def log_prefix(self, state, remaining=None):
        """See the class."""
        return state

    def log_complete(self, state, context=None):
        """Log probability that the text is good, nats."""
        return self._log_weight(context)

    def _log_weight(self, context: Any) -> Array:
        value = None if context is None else context.hot.value
        return jax.nn.log_sigmoid(self.logit(_hidden(value))).astype(float)


def hidden_states(
    lm: LanguageModel,
    prompt: Prompt | Prefix,
    tokens: Int[ArrayLike, "n T"],
    counts: Int[ArrayLike, "n"],
) -> Float[Array, "n D"]:
    """Hidden states after the first `counts[i]` tokens of each text, one pass a text."""
    prefix = prompt if isinstance(prompt, Prefix) else lm.prompt(prompt)
    tokens, counts = jnp.asarray(tokens, jnp.int32), jnp.asarray(counts, jnp.int32)
    return _hidden_states(lm, prefix, tokens, counts)


@compiled
def _hidden_states(lm, prefix, tokens, counts):
    def one(row, count):
        return _hidden(lm.replay(prefix, row, count, row.shape[0]))

    return jax.vmap(one)(tokens, counts)


def learn_reward_head(
    key: PRNGKeyArray,
    hidden: Float[Array, "n D"],
    labels: Float[ArrayLike, "n"] | Sequence[float],
    *,
    module: Any = None,
    width: int = 32,
    steps: int = 300,
    optimizer: Any = None,
    early: bool = False,
) -> RewardHead:
    """Learn a `RewardHead` from hidden states of texts with labels, by cross-entropy.

    Args:
        key: draws the network's first weights.
        hidden: from `hidden_states`.
        labels: the probability that each text is good; 0 and 1 for verdicts.
        module: a Flax NNX module to train, [D] to [1]; by default one hidden layer.
        width: units of that layer.
        steps: steps of the optimizer, each over all texts.
        optimizer: from optax; by default `adamw(0.01, weight_decay=0.01)`.
        early: see `RewardHead`.
    """
    labels = jnp.asarray(labels, dtype=float)
    if labels.shape != hidden.shape[:1]:
        raise ValueError(f"{hidden.shape[0]} texts need as many labels, got {labels.shape}")
    if not bool(jnp.all((labels >= 0) & (labels <= 1))):
        raise ValueError("labels are probabilities that a text is good, between 0 and 1")
    key_start, key_fit = jax.random.split(key)
    start = learned_head(key_start, hidden, width=width, module=module)
    made = vi.fit(
        key_fit,
        _log_likelihood,
        start,
        (hidden, labels),
        optimizer=optimizer or optax.adamw(1e-2, weight_decay=1e-2),
        steps=steps,
        every=steps,
        trainable=start.trainable,
        progress=False,
        throw=True,
    )
    return RewardHead(made.params, early)


@vi.objective
def _log_likelihood(ctx, head, hidden, labels):
    logits = head(hidden)[:, 0]
    good, bad = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    labels = labels.astype(logits.dtype)
    return jnp.mean(labels * good + (1 - labels) * bad)


def _hidden(state: Any) -> Array:
    hidden = getattr(state, "hidden", None)
    if hidden is None:
        raise ValueError(
            "a reward head reads the model's hidden state, and this model gives none: use a Llama, "
            "multiply the head to a models.generation of it, or give State(..., hidden=...)"
        )
    return hidden
