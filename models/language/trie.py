"""All beginnings of the tokens of a vocabulary, so that each is read once.

Nodes come level by level in blocks of one size, so that one loop of equal steps reads them all. A
block finds the states of its parents in a ring buffer that holds two levels.
"""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, UInt8

from ...ppl.potential import Potential
from .vocabulary import Vocabulary

_BLOCK = 512


class Trie(eqx.Module):
    """Beginnings of tokens: `parents` are slots of the ring, `bytes` the last byte of each.

    `place` is where a token is among 0 (a token that is no text), 1 (the end) and 2 + the nodes.
    """

    parents: Int[Array, "K B"]
    symbols: UInt8[Array, "K B"]
    place: Int[Array, "V"]
    ring: int = eqx.field(static=True)

    @staticmethod
    def of(vocabulary: Vocabulary) -> "Trie":
        """The trie of a vocabulary. ValueError without token bytes."""
        parents, symbols, place, ring = _built(vocabulary)
        return Trie(jnp.asarray(parents), jnp.asarray(symbols), jnp.asarray(place), ring)

    def log_prefixes(
        self, potential: Potential, state: PyTree, remaining: Int[Array, ""] | None
    ) -> Float[Array, "nodes"]:
        """What a potential over bytes says after each node, as `log_prefix`; nats."""
        size = self.parents.shape[1]
        ring = jax.tree.map(lambda x: jnp.broadcast_to(x, (self.ring, *jnp.shape(x))), state)

        def read(ring, inputs):
            number, parents, symbols = inputs
            before = jax.tree.map(lambda x: x[parents], ring)
            after = jax.vmap(potential.advance)(before, symbols.astype(jnp.int32))
            weights = jax.vmap(lambda s: potential.log_prefix(s, remaining))(after)
            slot = (number * size) % self.ring
            ring = jax.tree.map(
                lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, like(new, x), slot, 0),
                ring,
                after,
            )
            return ring, weights

        numbers = 1 + jnp.arange(self.parents.shape[0], dtype=jnp.int32)
        return jax.lax.scan(read, ring, (numbers, self.parents, self.symbols))[1].reshape(-1)


def like(new: Any, old: Any) -> Array:
    """`new` in the dtype of `old`."""
    return jnp.asarray(new).astype(jnp.asarray(old).dtype)


@functools.lru_cache(maxsize=8)
def _built(vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    texts = {i: vocabulary.token_bytes[i] for i in vocabulary.texts}
    longest = max(map(len, texts.values()), default=0)
    levels = [
        sorted({raw[:depth] for raw in texts.values() if len(raw) >= depth})
        for depth in range(1, longest + 1)
    ]
    widest = max(map(len, levels), default=1)
    size = min(_BLOCK, 1 << (widest - 1).bit_length())
    # The root has the first block of the ring for itself.
    blocks = [1, *(-(-len(level) // size) for level in levels)]
    ring = size * max((a + b for a, b in zip(blocks, blocks[1:], strict=False)), default=1)
    number = sum(blocks[1:])
    parents, symbols = np.zeros(number * size, np.int32), np.zeros(number * size, np.uint8)
    node, begin, where = 0, size, {b"": 0}
    for level, count in zip(levels, blocks[1:], strict=True):
        here = {raw: begin + i for i, raw in enumerate(level)}
        for i, raw in enumerate(level):
            parents[node + i] = where[raw[:-1]] % ring
            symbols[node + i] = raw[-1]
        where |= here
        node, begin = node + count * size, begin + count * size
    place = np.zeros(len(vocabulary.token_bytes), np.int32)
    for i, raw in texts.items():
        place[i] = 2 + where[raw] - size
    place[vocabulary.eos] = 1
    return parents.reshape(-1, size), symbols.reshape(-1, size), place, ring
