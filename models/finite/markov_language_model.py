"""A Markov model behind the language-model protocol: code for language models, tested exactly."""

from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..language.protocol import LanguageModel, Prefix, State
from ..language.tokenizer import Tokenizer
from .markov_lm import MarkovLM


class MarkovLanguageModel(LanguageModel):
    """`MarkovLM` as a `LanguageModel`: logits are the log probabilities of the next token (nats).

    Law: after a prompt that ends in token u, texts have the law of `lm.after(u)`; the empty prompt
    (it becomes the token `eos`) gives that of `lm` itself. Nothing is cached.
    """

    table: Float[Array, "V V"]
    vocab_size: int = eqx.field(static=True)
    eos: int = eqx.field(static=True)
    context: int = eqx.field(static=True)
    tokenizer: Tokenizer | None = eqx.field(static=True)

    def __init__(self, lm: MarkovLM, context: int = 1024, tokenizer: Tokenizer | None = None):
        """`context` is the largest number of tokens of prompt and text; the model needs none."""
        self.table = lm.log_table
        self.vocab_size = self.table.shape[0]
        self.eos = int(lm.eos)
        self.context = context
        self.tokenizer = tokenizer
        if tokenizer is not None:
            tokenizer.check_vocab_size(self.vocab_size)

    def prefill(self, tokens: Int[Array, "bucket"], length: Int[Array, ""]) -> Prefix:
        """See `LanguageModel.prefill`."""
        return Prefix((), length, self.table[tokens[length - 1]])

    def join(self, caches: Sequence[PyTree]) -> tuple[PyTree, Int[Array, "K"]]:
        """See `LanguageModel.join`."""
        return (), jnp.zeros(len(caches), jnp.int32)

    def start(self, prefix: Prefix, max_tokens: int, gaps: bool = False) -> State:
        """See `LanguageModel.start`."""
        self.check_room(prefix, max_tokens)
        return State(prefix.logits, (), None, jnp.zeros(max_tokens, bool) if gaps else None)

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
        written, logits = state.marked(slot, write), self.table[token]
        if write is not True:
            logits = jnp.where(write, logits, state.logits)
        return State(logits, (), None, written)

    def replay(
        self, prefix: Prefix, tokens: Int[Array, "T"], count: Int[Array, ""], max_tokens: int
    ) -> State:
        """See `LanguageModel.replay`."""
        if tokens.shape[0] > max_tokens:
            raise ValueError(f"{tokens.shape[0]} tokens do not fit into max_tokens={max_tokens}.")
        self.check_room(prefix, max_tokens)
        if tokens.shape[0] == 0:
            return State(prefix.logits, ())
        last = self.table[tokens[jnp.maximum(count - 1, 0)]]
        return State(jnp.where(count == 0, prefix.logits, last), ())

    def log_probs(self, prefix: Prefix, tokens: Int[Array, "T"]) -> Float[Array, "T"]:
        """See `LanguageModel.log_probs`."""
        rows = jnp.concatenate([prefix.logits[None], self.table[tokens[:-1]]])
        return jnp.take_along_axis(rows, tokens[:, None], axis=1)[:, 0]
