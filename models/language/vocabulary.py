"""The vocabulary: the texts of tokens, and tables of what a rule says of each."""

import functools
from collections.abc import Callable, Iterable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .protocol import LanguageModel
from .tokenizer import Tokenizer


class Vocabulary:
    """Bytes of each token, and which token ends a text; hashable.

    `token_bytes` has one entry a token; tokens in `forbidden` (a model's special tokens) and empty
    ones are no text, the token `eos` is the end. A model without a tokenizer has no `token_bytes`:
    to ask for them is a ValueError.
    """

    def __init__(
        self, token_bytes: Sequence[bytes] | None, eos: int, forbidden: Iterable[int] = ()
    ):
        if token_bytes is not None and not 0 <= eos < len(token_bytes):
            raise ValueError(f"eos is one of {len(token_bytes)} tokens, got {eos}")
        self._bytes = None if token_bytes is None else tuple(bytes(b) for b in token_bytes)
        self.eos = int(eos)
        self.forbidden = frozenset(int(i) for i in forbidden) - {self.eos}
        self._key = (self._bytes, self.eos, self.forbidden)

    @staticmethod
    def of(lm: LanguageModel) -> "Vocabulary":
        """The vocabulary of a language model; logits beyond the tokenizer's tokens are no text."""
        if lm.tokenizer is None:
            return Vocabulary(None, lm.eos)
        return _of_tokenizer(lm.tokenizer, lm.vocab_size, lm.eos)

    @property
    def token_bytes(self) -> tuple[bytes, ...]:
        """Bytes of each token."""
        if self._bytes is None:
            raise ValueError(
                "this model has no tokenizer, so its tokens have no texts: put the potential on a "
                "vocabulary of your own with potential.over(Vocabulary(token_bytes, eos))"
            )
        return self._bytes

    @property
    def size(self) -> int:
        """Number of tokens."""
        return len(self.token_bytes)

    @functools.cached_property
    def texts(self) -> tuple[int, ...]:
        """The tokens that are text: neither the end nor forbidden nor empty."""
        return tuple(
            i
            for i, raw in enumerate(self.token_bytes)
            if raw and i != self.eos and i not in self.forbidden
        )

    @functools.cached_property
    def _hash(self) -> int:
        return hash(self._key)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Vocabulary) and self._key == other._key)

    def __repr__(self) -> str:
        tokens = "no texts" if self._bytes is None else f"{len(self._bytes)} tokens"
        return f"Vocabulary({tokens}, eos={self.eos})"


@functools.lru_cache(maxsize=8)
def _of_tokenizer(tokenizer: Tokenizer, size: int, eos: int) -> Vocabulary:
    raw = list(tokenizer.token_bytes) + [b""] * (size - tokenizer.vocab_size)
    return Vocabulary(raw, eos, tokenizer.special_ids)


def token_table(lm: LanguageModel, rule: Callable[[str], bool | float]) -> Array:
    """`rule(text)` of every token, [V]: a boolean mask, or floats (nats) for a reward.

    The text is with its leading space, bytes that are no whole character as U+FFFD. The end of text
    counts as "", every other special token as forbidden (False, or a reward of 0). Raises
    ValueError if the rule gives NaN, or forbids every token.
    """
    if lm.tokenizer is None:
        raise ValueError(
            "this model has no tokenizer, so its tokens have no texts: build the table from token "
            "ids"
        )
    special = set(lm.tokenizer.special_ids)
    empty = rule("")
    kind = bool if isinstance(empty, bool | np.bool_) else float
    table = np.zeros(lm.vocab_size, kind)
    for token, raw in enumerate(lm.tokenizer.token_bytes):
        if token == lm.eos:
            table[token] = empty
        elif token not in special:
            table[token] = rule(raw.decode("utf-8", errors="replace"))
    if kind is bool and not table.any():
        raise ValueError(
            "the rule forbids every token of the vocabulary: there is no text that it allows"
        )
    if kind is float and np.isnan(table).any():
        bad = lm.tokenizer.token_bytes[int(np.isnan(table).argmax())]
        raise ValueError(
            f"the rule gives NaN for the token {bad!r}: return a number of nats, or -inf to forbid"
        )
    return jnp.asarray(table, dtype=kind)
