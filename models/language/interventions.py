"""Deterministic interventions on a language model's text: changed models, and proposals.

A `Changed` model has another law, stated by its rule, and takes part in everything that a language
model does; `hotter` is a proposal for a generation, whose law it leaves alone. Budget forcing:
Muennighoff et al. (2025), "s1: Simple test-time scaling", section 3.1.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ...ppl.distributions import Token
from ...ppl.proposal import Proposal
from ...ppl.state_space import Keep
from .delimiters import Strings, delimiter_table
from .protocol import LanguageModel, Prefix, State
from .tokenizer import Tokenizer
from .vocabulary import Vocabulary
from .writing import Generation, constrained


class Rule(eqx.Module):
    """A change of next-token logits by what has been written; its memory is small."""

    @abc.abstractmethod
    def start(self) -> PyTree:
        """The memory of the empty text."""

    @abc.abstractmethod
    def advance(self, memory: PyTree, token: Int[Array, ""]) -> PyTree:
        """The memory after one more token."""

    @abc.abstractmethod
    def logits(self, memory: PyTree, logits: Float[Array, "V"], eos: int) -> Float[Array, "V"]:
        """The changed logits."""


class ForcedEnd(Rule):
    """The text ends after `tokens` tokens: then end of text has probability one.

    Law: p(x) of the first `tokens` tokens of a text; longer ones are cut there.
    """

    tokens: Int[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, jnp.int32))

    def start(self):
        """Nothing written."""
        return jnp.zeros((), jnp.int32)

    def advance(self, memory, token):
        """Count."""
        return memory + 1

    def logits(self, memory, logits, eos):
        """See `Rule.logits`."""
        return jnp.where(memory >= self.tokens, _only(logits, eos), logits)


class ForcedWait(Rule):
    """An early end is replaced by the token `wait`: its probability goes to that token.

    Law: while fewer than `least` tokens are written, and `wait` fewer than `times` times (whether
    in place of an end or not), p'(wait) = p(wait) + p(end) and p'(end) = 0; else p.
    """

    wait: Int[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, jnp.int32))
    least: Int[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, jnp.int32))
    times: Int[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, jnp.int32), default=1)

    def start(self):
        """No token, and no wait."""
        return jnp.zeros(2, jnp.int32)

    def advance(self, memory, token):
        """Count both."""
        return memory + jnp.stack([jnp.int32(1), (token == self.wait).astype(jnp.int32)])

    def logits(self, memory, logits, eos):
        """See `Rule.logits`."""
        moved = logits.at[self.wait].set(jnp.logaddexp(logits[self.wait], logits[eos]))
        moved = moved.at[eos].set(-jnp.inf)
        early = (memory[0] < self.least) & (memory[1] < self.times)
        return jnp.where(early, moved, logits)


class StopStrings(Rule):
    """The text ends when it contains one of some strings, with the token that completes it.

    Law: p(x) of the text up to that token, then end of text with probability one (a token of its
    own, which `max_tokens` counts). Made by `StopStrings.of(lm, ["Question:", "Answer:"])`.
    """

    table: Int[Array, "Q V"]

    @staticmethod
    def of(lm: LanguageModel, strings: Strings) -> "StopStrings":
        """For a model's tokens; see `delimiter_table`."""
        return StopStrings(delimiter_table(Vocabulary.of(lm), strings))

    def start(self):
        """Nothing seen."""
        return jnp.zeros((), jnp.int32)

    def advance(self, memory, token):
        """Move the automaton."""
        return self.table[memory, token]

    def logits(self, memory, logits, eos):
        """See `Rule.logits`."""
        return jnp.where(memory == self.table.shape[0] - 1, _only(logits, eos), logits)


class Temperatures(Rule):
    """Token t is drawn at temperature `values[t]`, later ones at the last.

    Law: prod_t softmax(logits_t / values[t])[x_t]: another law than the model's. For a hot start
    that keeps it see `hotter`.
    """

    values: Float[Array, "T"] = eqx.field(
        converter=lambda x: jnp.atleast_1d(jnp.asarray(x, dtype=float))
    )

    def start(self):
        """Nothing written."""
        return jnp.zeros((), jnp.int32)

    def advance(self, memory, token):
        """Count."""
        return memory + 1

    def logits(self, memory, logits, eos):
        """See `Rule.logits`."""
        at = jnp.minimum(memory, self.values.shape[0] - 1)
        return logits / self.values[at].astype(logits.dtype)


def _only(logits: Array, token: int) -> Array:
    return jnp.where(
        jnp.arange(logits.shape[0], dtype=jnp.int32) == token, jnp.zeros_like(logits), -jnp.inf
    )


class Changed(LanguageModel):
    """A language model with its next-token law changed by a rule: `Changed(lm, ForcedEnd(200))`.

    Law: the rule's, token by token; rules compose from the inside out. Prompts are read by the
    model itself. `log_probs` takes one pass a token.
    """

    base: LanguageModel
    rule: Rule

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's."""
        return self.base.tokenizer

    @property
    def vocab_size(self) -> int:
        """The model's."""
        return self.base.vocab_size

    @property
    def eos(self) -> int:
        """The model's."""
        return self.base.eos

    @property
    def context(self) -> int:
        """The model's."""
        return self.base.context

    def prefill(self, tokens, length):
        """See `LanguageModel.prefill`."""
        return self.base.prefill(tokens, length)

    def join(self, caches):
        """See `LanguageModel.join`."""
        return self.base.join(caches)

    def start(self, prefix: Prefix, max_tokens: int, gaps: bool = False) -> State:
        """See `LanguageModel.start`."""
        return self._state(self.base.start(prefix, max_tokens, gaps), self.rule.start())

    def advance(
        self,
        prefix: Prefix,
        state: State,
        token: Int[Array, ""],
        slot: Int[Array, ""],
        write: bool | Bool[Array, ""] = True,
        live: bool | Bool[Array, ""] = True,
    ) -> State:
        """See `LanguageModel.advance`."""
        inner, memory = state.cache
        return self._state(
            self.base.advance(prefix, inner, token, slot, write, live),
            self._moved(memory, token, write),
        )

    def replay(
        self, prefix: Prefix, tokens: Int[Array, "T"], count: Int[Array, ""], max_tokens: int
    ) -> State:
        """See `LanguageModel.replay`."""

        def one(memory, inputs):
            token, index = inputs
            return self._moved(memory, token, index < count), None

        steps = jnp.arange(tokens.shape[0], dtype=jnp.int32)
        memory, _ = jax.lax.scan(one, self.rule.start(), (tokens.astype(jnp.int32), steps))
        return self._state(self.base.replay(prefix, tokens, count, max_tokens), memory)

    def log_probs(self, prefix: Prefix, tokens: Int[Array, "T"]) -> Float[Array, "T"]:
        """See `LanguageModel.log_probs`."""

        def one(state, inputs):
            token, slot = inputs
            log_prob = jax.nn.log_softmax(state.logits)[token]
            return self.advance(prefix, state, token, slot), log_prob

        slots = jnp.arange(tokens.shape[0], dtype=jnp.int32)
        start = self.start(prefix, tokens.shape[0])
        return jax.lax.scan(one, start, (tokens.astype(jnp.int32), slots))[1]

    def _moved(self, memory: PyTree, token: Array, write: bool | Array) -> PyTree:
        new = self.rule.advance(memory, token.astype(jnp.int32))
        return jax.tree.map(lambda a, b: jnp.where(write, a, b), new, memory)

    def _state(self, inner: State, memory: PyTree) -> State:
        logits = self.rule.logits(memory, inner.logits, self.eos)
        return State(logits, (inner, memory), inner.hidden)


def hotter(model: Generation, temperature: Any) -> Proposal:
    """A proposal for a generation: its tokens drawn at another temperature, weights corrected.

    `temperature` is one number or one a token (the rest at the last): a hot start is
    `hotter(story, [2.0, 2.0, 1.0])`. What potentials know of the next token guides the draws as
    without it. The law is the generation's: `SMC(n, proposal=models.hotter(story, 1.5))`. For text
    in steps give `stepwise` the temperature as `drawn_at`.
    """
    values = jnp.atleast_1d(jnp.asarray(temperature, dtype=float))
    length, limited = model.length, not isinstance(model.at_length, Keep)

    def step(ctx, text, t, values, lm, prefix, temperature, potential):
        heat = values[jnp.minimum(t, values.shape[0] - 1)].astype(text.logits.dtype)
        remaining = length - t if limited else None
        known = None if potential is None else potential.log_next(text.carried, remaining)
        law, _ = constrained(Token(text.logits / heat), known)
        ctx.sample("token", law)

    return Proposal(step).bind(values)
