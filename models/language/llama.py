"""Llama-style decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Source: Touvron et al., "LLaMA", 2023 (arXiv:2302.13971), section 2.2; grouped queries by Ainslie et
al., 2023 (arXiv:2305.13245); rotary positions by Su et al., 2021 (arXiv:2104.09864), rotate-half.
Layers are unrolled and each has a cache of its own, so that XLA writes them in place.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .cache import Cache, Part, Query, attend, attend_filled, merge, write
from .protocol import LanguageModel, Prefix, State
from .tokenizer import Tokenizer

_HEAD_BLOCK = 16


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes and constants of a decoder; static."""

    vocab_size: int
    layers: int
    d: int
    ff: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_base: float = 10000.0
    norm_eps: float = 1e-5
    context: int = 2048


class Adapted(eqx.Module):
    """A matrix with a low-rank term, base + up @ down, applied without making the sum."""

    base: Float[Array, "out in"]
    up: Float[Array, "out r"]
    down: Float[Array, "r in"]

    @property
    def merged(self) -> Float[Array, "out in"]:
        """The sum."""
        return self.base + self.up @ self.down


class Layer(eqx.Module):
    """Weights of one block, each matrix [out, in], adapted or not."""

    attention_norm: Float[Array, "d"]
    query: Float[Array, "queries d"] | Adapted
    key: Float[Array, "keys d"] | Adapted
    value: Float[Array, "keys d"] | Adapted
    output: Float[Array, "d queries"] | Adapted
    mlp_norm: Float[Array, "d"]
    gate: Float[Array, "ff d"] | Adapted
    up: Float[Array, "ff d"] | Adapted
    down: Float[Array, "d ff"] | Adapted


def _times(x: Float[Array, "T in"], matrix: Array | Adapted) -> Float[Array, "T out"]:
    if isinstance(matrix, Adapted):
        return x @ matrix.base.T + (x @ matrix.down.T) @ matrix.up.T
    return x @ matrix.T


def _norm(x: Array, weight: Array, eps: float) -> Array:
    scaled = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)
    return scaled * jnp.broadcast_to(weight, x.shape)


def _rotate(x: Float[Array, "T n d"], positions: Int[Array, "T"], base: float) -> Array:
    half = x.shape[-1] // 2
    rates = base ** (-jnp.arange(half, dtype=x.dtype) / half)
    angles = positions.astype(x.dtype)[:, None, None] * rates[None, None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    left, right = x[..., :half], x[..., half:]
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


class Llama(LanguageModel):
    """A decoder with its weights; `head` None means that the embedding is the head (tied).

    The prefix cache is a tuple of keys and values [kv_head, bucket, head_dim], one a layer; that of
    a state has `max_tokens` slots instead, rounded up to a multiple of 16.
    """

    embedding: Float[Array, "V d"]
    layers: tuple[Layer, ...]
    norm: Float[Array, "d"]
    head: Float[Array, "V d"] | None
    config: LlamaConfig = eqx.field(static=True)
    tokenizer: Tokenizer | None = eqx.field(static=True)
    eos: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        rows = self.embedding.shape[0]
        if rows != self.config.vocab_size:
            raise ValueError(f"The embedding has {rows} rows, not {self.config.vocab_size}.")
        if self.tokenizer is not None:
            self.tokenizer.check_vocab_size(rows)

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self.config.vocab_size

    @property
    def context(self) -> int:
        """Largest number of prompt and suffix tokens."""
        return self.config.context

    def _empty(self, slots: int) -> tuple[Cache, ...]:
        empty = jnp.zeros((self.config.kv_heads, slots, self.config.head_dim), self.embedding.dtype)
        return tuple(Cache(empty, empty) for _ in self.layers)

    def _read(self, x: Float[Array, "*T d"]) -> tuple[Float[Array, "*T V"], Float[Array, "*T d"]]:
        """Logits, and the vectors that they are read from."""
        head = self.embedding if self.head is None else self.head
        hidden = _norm(x, self.norm, self.config.norm_eps)
        return hidden @ head.T, hidden

    def _decode(
        self,
        tokens: Int[Array, "T"],
        positions: Int[Array, "T"],
        slot: Int[Array, ""],
        caches: tuple[Cache, ...],
        attention: Callable[[int, Query, Cache], Array],
    ) -> tuple[Float[Array, "T d"], tuple[Cache, ...]]:
        """Run T tokens through the layers, writing their keys and values from `slot` on."""
        c, size = self.config, tokens.shape[0]
        x = self.embedding[tokens]
        written = []
        for index, (layer, cache) in enumerate(zip(self.layers, caches, strict=True)):
            h = _norm(x, layer.attention_norm, c.norm_eps)
            query = _times(h, layer.query).reshape(size, c.heads, c.head_dim)
            key = _times(h, layer.key).reshape(size, c.kv_heads, c.head_dim)
            value = _times(h, layer.value).reshape(size, c.kv_heads, c.head_dim)
            query = _rotate(query, positions, c.rope_base)
            key = _rotate(key, positions, c.rope_base)
            cache = write(cache, key.swapaxes(0, 1), value.swapaxes(0, 1), slot)
            grouped = query.reshape(size, c.kv_heads, -1, c.head_dim).transpose(1, 2, 0, 3)
            mixed = attention(index, grouped, cache).transpose(2, 0, 1, 3).reshape(size, -1)
            x = x + _times(mixed, layer.output)
            h = _norm(x, layer.mlp_norm, c.norm_eps)
            gated = jax.nn.silu(_times(h, layer.gate)) * _times(h, layer.up)
            x = x + _times(gated, layer.down)
            written.append(cache)
        return x, tuple(written)

    def prefill(self, tokens: Int[Array, "bucket"], length: Int[Array, ""]) -> Prefix:
        """See `LanguageModel.prefill`."""
        size = tokens.shape[0]
        positions = jnp.arange(size, dtype=jnp.int32)
        causal = positions[None, :] <= positions[:, None]

        def attention(index: int, query: Query, cache: Cache) -> Array:
            part = attend(query, cache, causal)
            return part.output / part.total[..., None]

        zero = jnp.zeros((), jnp.int32)
        x, caches = self._decode(tokens, positions, zero, self._empty(size), attention)
        return Prefix(caches, length, *self._read(x[length - 1]))

    def join(
        self, caches: Sequence[tuple[Cache, ...]]
    ) -> tuple[tuple[Cache, ...], Int[Array, "K"]]:
        """See `LanguageModel.join`: slots one after the other; a place is the first of its own."""
        sizes = [layers[0].keys.shape[1] for layers in caches]
        joined = jax.tree.map(lambda *xs: jnp.concatenate(xs, axis=1), *caches)
        return joined, jnp.asarray([sum(sizes[:i]) for i in range(len(sizes))], jnp.int32)

    def start(self, prefix: Prefix, max_tokens: int, gaps: bool = False) -> State:
        """See `LanguageModel.start`."""
        self.check_room(prefix, max_tokens)
        slots = _slots(max_tokens)
        written = jnp.zeros(slots, bool) if gaps else None
        return State(prefix.logits, self._empty(slots), prefix.hidden, written)

    def advance(
        self,
        prefix: Prefix,
        state: State,
        token: Int[Array, ""],
        slot: Int[Array, ""],
        write: bool | Bool[Array, ""] = True,
    ) -> State:
        """See `LanguageModel.advance`."""
        slot = slot.astype(jnp.int32)
        written = state.marked(slot, write)
        before = slot if state.written is None else jnp.sum(state.written, dtype=jnp.int32)

        def attention(index: int, query: Query, cache: Cache) -> Array:
            own = attend_filled(query, cache, slot, written)
            return merge(self._over_prefix(prefix, index, query), own)

        positions = (prefix.length + before)[None]
        x, caches = self._decode(token[None], positions, slot, state.cache, attention)
        logits, hidden = self._read(x[0])
        if write is not True:
            logits = jnp.where(write, logits, state.logits)
            hidden = hidden if state.hidden is None else jnp.where(write, hidden, state.hidden)
        return State(logits, caches, hidden, written)

    def replay(
        self, prefix: Prefix, tokens: Int[Array, "T"], count: Int[Array, ""], max_tokens: int
    ) -> State:
        """See `LanguageModel.replay`."""
        if tokens.shape[0] > max_tokens:
            raise ValueError(f"{tokens.shape[0]} tokens do not fit into max_tokens={max_tokens}.")
        self.check_room(prefix, max_tokens)
        if tokens.shape[0] == 0:
            return self.start(prefix, max_tokens)
        x, caches = self._suffix(prefix, tokens, _slots(max_tokens))
        logits, hidden = self._read(x[jnp.maximum(count - 1, 0)])
        if prefix.hidden is not None:
            hidden = jnp.where(count == 0, prefix.hidden, hidden)
        return State(jnp.where(count == 0, prefix.logits, logits), caches, hidden)

    def log_probs(self, prefix: Prefix, tokens: Int[Array, "T"]) -> Float[Array, "T"]:
        """See `LanguageModel.log_probs`."""
        size = tokens.shape[0]
        x, _ = self._suffix(prefix, tokens, size)

        def scored(inputs: tuple[Array, Array]) -> Array:
            hidden, token = inputs
            logits, _ = self._read(hidden)
            return logits[token] - jax.nn.logsumexp(logits)

        first = prefix.logits[tokens[0]] - jax.nn.logsumexp(prefix.logits)
        rest = jax.lax.map(scored, (x[:-1], tokens[1:]), batch_size=_HEAD_BLOCK)
        return jnp.concatenate([first[None], rest])

    def _suffix(
        self, prefix: Prefix, tokens: Int[Array, "T"], slots: int
    ) -> tuple[Float[Array, "T d"], tuple[Cache, ...]]:
        steps = jnp.arange(tokens.shape[0], dtype=jnp.int32)
        causal = jnp.arange(slots, dtype=jnp.int32)[None, :] <= steps[:, None]

        def attention(index: int, query: Query, cache: Cache) -> Array:
            return merge(self._over_prefix(prefix, index, query), attend(query, cache, causal))

        zero = jnp.zeros((), jnp.int32)
        return self._decode(tokens, prefix.length + steps, zero, self._empty(slots), attention)

    def _over_prefix(self, prefix: Prefix, index: int, query: Query) -> Part:
        cache = prefix.cache[index]
        slots = cache.keys.shape[1]
        number = jnp.arange(slots, dtype=jnp.int32)
        visible = number < prefix.length
        if prefix.place is not None:
            visible = (number >= prefix.place) & (number < prefix.place + prefix.length)
        return attend(query, cache, jnp.broadcast_to(visible, (query.shape[2], slots)))


def _slots(max_tokens: int) -> int:
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, not {max_tokens}.")
    return -(-max_tokens // 16) * 16
