"""Llama-style decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Source: Touvron et al., "LLaMA", 2023 (arXiv:2302.13971), section 2.2; grouped queries by Ainslie et
al., 2023 (arXiv:2305.13245); rotary positions by Su et al., 2021 (arXiv:2104.09864), rotate-half.
Layers are unrolled and each has a cache of its own, so that XLA writes them in place.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .cache import Cache, Part, Query, attend, attend_filled, merge, write
from .protocol import LanguageModel, Prefix, State
from .sharing import once_for_equal
from .tokenizer import Tokenizer

_HEAD_BLOCK = 16
_NONE = -1


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


class Memory(NamedTuple):
    """What a state remembers of its text: a cache for each layer, and the tokens, -1 at no slot."""

    layers: tuple[Cache, ...]
    tokens: Int[Array, "S"]


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
    a state is a `Memory` with `max_tokens` slots instead, rounded up to a multiple of 16.
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

    def _empty(self, slots: int) -> Memory:
        empty = jnp.zeros((self.config.kv_heads, slots, self.config.head_dim), self.embedding.dtype)
        layers = tuple(Cache(empty, empty) for _ in self.layers)
        return Memory(layers, jnp.full(slots, _NONE, jnp.int32))

    def _read(self, x: Float[Array, "*T d"]) -> tuple[Float[Array, "*T V"], Float[Array, "*T d"]]:
        """Logits, and the vectors that they are read from."""
        head = self.embedding if self.head is None else self.head
        hidden = _norm(x, self.norm, self.config.norm_eps)
        return hidden @ head.T, hidden

    def _decode(
        self,
        tokens: Int[Array, "T"],
        positions: Int[Array, "T"],
        attention: Callable[[int, Query, Cache], Array],
    ) -> tuple[Float[Array, "T d"], tuple[Cache, ...]]:
        """Run T tokens through the layers: vectors, and their keys and values in each layer."""
        c, size = self.config, tokens.shape[0]
        x = self.embedding[tokens]
        own = []
        for index, layer in enumerate(self.layers):
            h = _norm(x, layer.attention_norm, c.norm_eps)
            query = _times(h, layer.query).reshape(size, c.heads, c.head_dim)
            key = _times(h, layer.key).reshape(size, c.kv_heads, c.head_dim)
            value = _times(h, layer.value).reshape(size, c.kv_heads, c.head_dim)
            query = _rotate(query, positions, c.rope_base)
            key = _rotate(key, positions, c.rope_base)
            new = Cache(key.swapaxes(0, 1), value.swapaxes(0, 1))
            grouped = query.reshape(size, c.kv_heads, -1, c.head_dim).transpose(1, 2, 0, 3)
            mixed = attention(index, grouped, new).transpose(2, 0, 1, 3).reshape(size, -1)
            x = x + _times(mixed, layer.output)
            h = _norm(x, layer.mlp_norm, c.norm_eps)
            gated = jax.nn.silu(_times(h, layer.gate)) * _times(h, layer.up)
            x = x + _times(gated, layer.down)
            own.append(new)
        return x, tuple(own)

    def prefill(self, tokens: Int[Array, "bucket"], length: Int[Array, ""]) -> Prefix:
        """See `LanguageModel.prefill`."""
        positions = jnp.arange(tokens.shape[0], dtype=jnp.int32)
        causal = positions[None, :] <= positions[:, None]

        def attention(index: int, query: Query, own: Cache) -> Array:
            return merge(attend(query, own, causal))

        x, caches = self._decode(tokens, positions, attention)
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
        memory = self._empty(_slots(max_tokens))
        written = jnp.zeros(memory.tokens.shape, bool) if gaps else None
        return State(prefix.logits, memory, prefix.hidden, written)

    def advance(
        self,
        prefix: Prefix,
        state: State,
        token: Int[Array, ""],
        slot: Int[Array, ""],
        write: bool | Bool[Array, ""] = True,
        live: bool | Bool[Array, ""] = True,
    ) -> State:
        """See `LanguageModel.advance`; the layers run once for particles with the same text."""
        slot, memory = slot.astype(jnp.int32), state.cache
        written = state.marked(slot, write)
        before = slot if state.written is None else jnp.sum(state.written, dtype=jnp.int32)
        tokens = memory.tokens.at[slot].set(jnp.where(write, token, _NONE))
        length, place = prefix.length, prefix.place
        text = jnp.concatenate([tokens, length[None], *([] if place is None else [place[None]])])
        out, hidden, own = once_for_equal(
            Llama._append,
            (self, prefix.cache, slot),
            (token, length + before, length, place, state.written),
            memory.layers,
            text.astype(jnp.int32),
            jnp.asarray(live) & write,
        )
        layers = _written(memory.layers, own, slot)
        if write is not True:
            out = jnp.where(write, out, state.logits)
            hidden = hidden if state.hidden is None else jnp.where(write, hidden, state.hidden)
        return State(out, Memory(layers, tokens), hidden, written)

    @staticmethod
    @jax.jit
    def _append(
        common: tuple, own: tuple, layers: tuple[Cache, ...], row: Int[Array, ""] | None
    ) -> tuple[Array, Array, tuple[Cache, ...]]:
        """Logits after one more token, their vector, and the token's keys and values."""
        lm, prompt, slot = common
        token, position, length, place, written = own

        def attention(index: int, query: Query, new: Cache) -> Array:
            return merge(
                _over_prompt(query, prompt[index], length, place),
                attend_filled(query, layers[index], slot, written, row),
                attend(query, new, jnp.ones((1, 1), bool)),
            )

        x, new = lm._decode(token[None], position[None], attention)
        # Zero, but known only after all reading: then XLA writes keys and values in place.
        after = 0.0 * x[0, 0]
        return *lm._read(x[0]), jax.tree.map(lambda y: y + after, new)

    def replay(
        self, prefix: Prefix, tokens: Int[Array, "T"], count: Int[Array, ""], max_tokens: int
    ) -> State:
        """See `LanguageModel.replay`."""
        if tokens.shape[0] > max_tokens:
            raise ValueError(f"{tokens.shape[0]} tokens do not fit into max_tokens={max_tokens}.")
        self.check_room(prefix, max_tokens)
        if tokens.shape[0] == 0:
            return self.start(prefix, max_tokens)
        x, own = self._suffix(prefix, tokens)
        zero, memory = jnp.zeros((), jnp.int32), self._empty(_slots(max_tokens))
        layers = _written(memory.layers, own, zero)
        slots = jnp.arange(tokens.shape[0], dtype=jnp.int32)
        read = jnp.where(slots < count, tokens.astype(jnp.int32), _NONE)
        memory = Memory(layers, memory.tokens.at[: tokens.shape[0]].set(read))
        logits, hidden = self._read(x[jnp.maximum(count - 1, 0)])
        if prefix.hidden is not None:
            hidden = jnp.where(count == 0, prefix.hidden, hidden)
        return State(jnp.where(count == 0, prefix.logits, logits), memory, hidden)

    def log_probs(self, prefix: Prefix, tokens: Int[Array, "T"]) -> Float[Array, "T"]:
        """See `LanguageModel.log_probs`."""
        x, _ = self._suffix(prefix, tokens)

        def scored(inputs: tuple[Array, Array]) -> Array:
            hidden, token = inputs
            logits, _ = self._read(hidden)
            return logits[token] - jax.nn.logsumexp(logits)

        first = prefix.logits[tokens[0]] - jax.nn.logsumexp(prefix.logits)
        rest = jax.lax.map(scored, (x[:-1], tokens[1:]), batch_size=_HEAD_BLOCK)
        return jnp.concatenate([first[None], rest])

    def _suffix(
        self, prefix: Prefix, tokens: Int[Array, "T"]
    ) -> tuple[Float[Array, "T d"], tuple[Cache, ...]]:
        steps = jnp.arange(tokens.shape[0], dtype=jnp.int32)
        causal = steps[None, :] <= steps[:, None]

        def attention(index: int, query: Query, own: Cache) -> Array:
            prompt = _over_prompt(query, prefix.cache[index], prefix.length, prefix.place)
            return merge(prompt, attend(query, own, causal))

        return self._decode(tokens, prefix.length + steps, attention)


def _over_prompt(
    query: Query, cache: Cache, length: Int[Array, ""], place: Int[Array, ""] | None
) -> Part:
    slots = cache.keys.shape[1]
    number = jnp.arange(slots, dtype=jnp.int32)
    first = jnp.zeros((), jnp.int32) if place is None else place
    visible = (number >= first) & (number < first + length)
    return attend(query, cache, jnp.broadcast_to(visible, (query.shape[2], slots)))


def _written(
    layers: tuple[Cache, ...], own: tuple[Cache, ...], slot: Int[Array, ""]
) -> tuple[Cache, ...]:
    pairs = zip(layers, own, strict=True)
    return tuple(write(old, new.keys, new.values, slot) for old, new in pairs)


def _slots(max_tokens: int) -> int:
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, not {max_tokens}.")
    return -(-max_tokens // 16) * 16
