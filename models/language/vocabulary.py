"""Tables over the vocabulary: what a rule about text says of each token."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .protocol import LanguageModel


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
