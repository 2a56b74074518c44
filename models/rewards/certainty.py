"""Rewards that a model gives itself, from the logits that its tokens were drawn from.

Self-certainty: Kang, Zhao and Song (2025), "Scalable best-of-N selection for large language models
via self-certainty", equation for -1/(nV) sum_i sum_j log(V p_ij).
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ...ppl.potential import Potential


class _MeanOfTokens(Potential):
    """exp of the mean over the tokens of a text, its end among them, of a number of nats."""

    @property
    def reads_model(self) -> bool:
        """Always."""
        return True

    @abc.abstractmethod
    def _nats(self, logits: Float[Array, "V"], token: Array | None) -> Float[Array, ""]:
        """The number of a token (None for the end) that is drawn from these logits."""

    def start(self, length):
        """Sum and number of tokens."""
        return jnp.zeros(()), jnp.zeros((), jnp.int32)

    def advance(self, state, symbol, context=None):
        """One more token."""
        return self._add(state, self._nats(_logits(context), symbol))

    def log_prefix(self, state, remaining=None):
        """The mean so far; 0 of nothing."""
        return state[0] / jnp.maximum(state[1], 1).astype(state[0].dtype)

    def log_complete(self, state, context=None):
        """The mean with the end."""
        return self.log_prefix(self._add(state, self._nats(_logits(context), None)))

    def _add(self, state, nats):
        return state[0] + nats.astype(state[0].dtype), state[1] + 1


class SelfCertainty(_MeanOfTokens):
    """Weight exp(c), c >= 0 the mean divergence KL(uniform, p) of the laws of the tokens, nats.

    The laws are those of the model at temperature 1, before any constraint. Tokens that the model
    itself rules out (logit -inf) are left out of the uniform law. `SelfCertainty() ** beta` weighs
    by exp(beta c).
    """

    def _nats(self, logits, token):
        possible = ~jnp.isneginf(logits)
        count = jnp.sum(possible).astype(logits.dtype)
        mean = jnp.sum(jnp.where(possible, logits, 0.0)) / count
        return jax.nn.logsumexp(logits) - mean - jnp.log(count)


class Perplexity(_MeanOfTokens):
    """Weight 1 / perplexity: exp of the mean log probability of the tokens, nats.

    Probabilities are those of the model at temperature 1, before any constraint. The end counts as
    a token.
    """

    eos: int | None = eqx.field(static=True, default=None)

    def over(self, vocabulary):
        """See `Potential.over`."""
        return Perplexity(vocabulary.eos)

    def _nats(self, logits, token):
        if token is None and self.eos is None:
            raise ValueError("say which token ends a text: potential.over(vocabulary)")
        at: int | Int[Array, ""] = self.eos if token is None else token  # pyright: ignore
        return logits[at] - jax.nn.logsumexp(logits)


def _logits(context) -> Array:
    if context is None:
        raise ValueError(
            "this reward reads the logits of the model that writes: multiply it to a "
            "models.generation, instead of using it inside Bytes, Characters, Words or Steps"
        )
    return context.logits
