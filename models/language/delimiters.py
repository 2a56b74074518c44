"""Where a piece of text ends: an automaton over the bytes of tokens.

The automaton of several patterns is that of Aho and Corasick (1975), "Efficient string matching".
"""

import functools
from collections import deque
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from .vocabulary import Vocabulary

LINE = ("\n",)
"""A line."""
PARAGRAPH = ("\n\n",)
"""Text up to a blank line."""
SENTENCE = (".", "!", "?")
"""Text up to a full stop, an exclamation or a question mark; "3.5" has one too."""

Strings = str | bytes | Sequence[str | bytes]


def delimiter_table(vocabulary: Vocabulary, delimiters: Strings) -> Int[Array, "Q V"]:
    """The next state for each state and token; the last state says that a delimiter was written.

    State 0 has seen nothing, and the last one is never left. A delimiter may begin and end within
    tokens: a piece ends with the first token in which its bytes so far contain one, and what that
    token holds beyond it belongs to the piece. Tokens without text do not move the automaton.
    ValueError for no delimiter or an empty one.
    """
    given = (delimiters,) if isinstance(delimiters, str | bytes) else tuple(delimiters)
    raw = tuple(x.encode() if isinstance(x, str) else bytes(x) for x in given)
    if not raw or not all(raw):
        raise ValueError(f"delimiters are texts of at least one byte, got {given}")
    return _table(vocabulary, raw)


@functools.lru_cache(maxsize=8)
def _table(vocabulary: Vocabulary, delimiters: tuple[bytes, ...]) -> Array:
    moves = byte_automaton(delimiters)
    texts = np.array(vocabulary.texts, int)
    longest = max((len(vocabulary.token_bytes[i]) for i in texts), default=0)
    symbols = np.full((longest, len(texts)), 256)
    for column, token in enumerate(texts):
        raw = vocabulary.token_bytes[token]
        symbols[: len(raw), column] = list(raw)
    # Column 256 stands for no byte.
    moves = np.concatenate([moves, np.arange(len(moves))[:, None]], axis=1)
    state = np.broadcast_to(np.arange(len(moves))[:, None], (len(moves), len(texts)))
    for row in symbols:
        state = moves[state, row[None, :]]
    table = np.broadcast_to(np.arange(len(moves))[:, None], (len(moves), vocabulary.size)).copy()
    table[:, texts] = state
    return jnp.asarray(table, jnp.int32)


def byte_automaton(patterns: Sequence[bytes]) -> np.ndarray:
    """The next state for each state and byte, [Q, 256]; the last state is final and never left."""
    children: list[dict[int, int]] = [{}]
    found = [False]
    for pattern in patterns:
        at = 0
        for byte in pattern:
            if byte not in children[at]:
                children[at][byte] = len(children)
                children.append({})
                found.append(False)
            at = children[at][byte]
        found[at] = True
    moves = np.zeros((len(children), 256), int)
    fallback = [0] * len(children)
    queue = deque([0])
    while queue:
        at = queue.popleft()
        found[at] |= found[fallback[at]]
        moves[at] = moves[fallback[at]] if at else 0
        for byte, child in children[at].items():
            fallback[child] = int(moves[fallback[at], byte]) if at else 0
            moves[at, byte] = child
            queue.append(child)
    # All final states become one, the last.
    kept = [i for i in range(len(children)) if not found[i]]
    number = {old: new for new, old in enumerate(kept)}
    final = len(kept)
    renumber = np.array([number.get(i, final) for i in range(len(children))])
    return np.concatenate([renumber[moves[kept]], np.full((1, 256), final)])
