"""Potentials over the bytes of a text, put on the tokens of a language model.

The coercion of an alphabet by a homomorphism, f(token) = its bytes (Loula et al. 2025, "Syntactic
and semantic control of large language models via sequential Monte Carlo", section 2): a text of
tokens weighs what the bytes of all its tokens weigh, however it is cut into tokens.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PyTree, UInt8

from ...ppl.log_weights import gain
from ...ppl.potential import Potential
from .trie import Trie, like
from .vocabulary import Vocabulary


class BytePotential(Potential):
    """A `Potential` whose symbols are bytes (0 to 255); `over` puts it on a vocabulary's tokens.

    Subclass it, or wrap a potential in `Bytes`, `Characters`, `Words` or `Steps`.
    """

    @property
    def looks_ahead(self) -> bool:
        """Should draws be guided, by trying the bytes of every token of the vocabulary?"""
        return False

    def over(self, vocabulary: Vocabulary) -> Potential:
        """On tokens: `advance` reads the bytes of the token. ValueError without token bytes."""
        return OverTokens(self, vocabulary, self.looks_ahead)


class Bytes(BytePotential):
    """A potential over bytes, from any `Potential` whose symbols are int32 from 0 to 255.

    With `ahead` its `log_next` is computed by trying every token: exact for any potential, and
    draws never leave what it allows. It costs the bytes of the whole vocabulary a particle and
    step, so it is for potentials of few operations and a small state; others only weigh.
    """

    inner: Potential
    ahead: bool = eqx.field(static=True, default=False)

    @property
    def looks_ahead(self) -> bool:
        """As told."""
        return self.ahead

    def start(self, length):
        """See `Potential.start`."""
        return self.inner.start(length)

    def advance(self, state, symbol, context=None):
        """See `Potential.advance`."""
        return self.inner.advance(state, symbol)

    def log_prefix(self, state, remaining=None):
        """See `Potential.log_prefix`."""
        return self.inner.log_prefix(state, remaining)

    def log_complete(self, state, context=None):
        """See `Potential.log_complete`."""
        return self.inner.log_complete(state)


class OverTokens(Potential):
    """A byte potential on tokens. A token that is no text weighs zero.

    `table` holds the bytes of each token, zero-padded, `lengths` their number, and `trie` all
    their beginnings, where it looks ahead.
    """

    inner: Potential
    table: UInt8[Array, "V L"]
    lengths: Int[Array, "V"]
    textual: Bool[Array, "V"]
    trie: Trie | None

    def __init__(self, inner: Potential, vocabulary: Vocabulary, ahead: bool = False):
        table, lengths, textual = _tables(vocabulary)
        self.inner, self.table = inner, jnp.asarray(table)
        self.lengths, self.textual = jnp.asarray(lengths), jnp.asarray(textual)
        self.trie = Trie.of(vocabulary) if ahead else None

    def start(self, length):
        """See `Potential.start`; and that all tokens so far are text."""
        return self.inner.start(length * self.table.shape[1]), jnp.ones((), bool)

    def advance(self, state, symbol, context=None):
        """See `Potential.advance`."""
        inner, readable = state
        row, length = self.table[symbol], self.lengths[symbol]

        def read(carry):
            return carry[0] + 1, self.inner.advance(carry[1], row[carry[0]].astype(jnp.int32))

        zero = jnp.zeros((), jnp.int32)
        _, inner = jax.lax.while_loop(lambda carry: carry[0] < length, read, (zero, inner))
        return inner, readable & self.textual[symbol]

    def log_prefix(self, state, remaining=None):
        """See `Potential.log_prefix`."""
        inner, readable = state
        log_weight = self.inner.log_prefix(inner, self._bytes(remaining))
        if remaining is not None:
            readable = readable & (remaining > 0)
        return jnp.where(readable, log_weight, -jnp.inf)

    def log_complete(self, state, context=None):
        """See `Potential.log_complete`."""
        return jnp.where(state[1], self.inner.log_complete(state[0]), -jnp.inf)

    def log_next(self, state, remaining=None):
        """Exact where the potential looks ahead, else None."""
        if self.trie is None:
            return None
        now, later = self.log_prefix(state, remaining), None if remaining is None else remaining - 1
        after = self.trie.log_prefixes(self.inner, state[0], self._bytes(later))
        if later is not None:
            after = jnp.where(later > 0, after, -jnp.inf)
        whole = self.log_complete(state).astype(after.dtype)
        ends = jnp.concatenate([jnp.full((1,), -jnp.inf, after.dtype), whole[None], after])
        return gain(ends[self.trie.place], now)

    def _bytes(self, remaining: Array | None) -> Array | None:
        """The largest number of bytes that may come, one for the end included."""
        return None if remaining is None else (remaining - 1) * self.table.shape[1] + 1


def kept(flag: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    """`new` where the flag holds, else `old`, in the dtypes of `old`."""
    return jax.tree.map(lambda a, b: jnp.where(flag, like(a, b), b), new, old)


@functools.lru_cache(maxsize=8)
def _tables(vocabulary: Vocabulary) -> tuple:
    raw, texts = vocabulary.token_bytes, vocabulary.texts
    longest = max((len(raw[i]) for i in texts), default=1)
    table = np.zeros((len(raw), longest), np.uint8)
    lengths, textual = np.zeros(len(raw), np.int32), np.zeros(len(raw), bool)
    for i in texts:
        table[i, : len(raw[i])] = np.frombuffer(raw[i], np.uint8)
        lengths[i], textual[i] = len(raw[i]), True
    return table, lengths, textual
