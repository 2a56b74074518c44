"""Key-value caches and exact softmax attention in two parts: shared prompt and own suffix.

Softmax over prompt and suffix together is merged from its two parts by their maxima and
normalizers (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018,
arXiv:1805.02867, eq. 4). So the prompt's keys and values exist once, however many particles.

Shapes: H key-value heads, G query heads for each, D the head dimension, S slots of a cache,
T query tokens.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

BUCKET = 32
_MASKED = -1e30

Query = Float[Array, "H G T D"]


class Cache(NamedTuple):
    """Keys and values of one layer. Apart, so that reading either is no copy."""

    keys: Float[Array, "H S D"]
    values: Float[Array, "H S D"]


class Part(NamedTuple):
    """Attention over some of the slots: maximum score, normalizer, unnormalized output."""

    top: Float[Array, "H G T"]
    total: Float[Array, "H G T"]
    output: Float[Array, "H G T D"]


def attend(query: Query, cache: Cache, visible: Bool[Array, "T S"]) -> Part:
    """Attention of each query over the slots it may see; the others have weight exactly zero."""
    scale = 1.0 / math.sqrt(query.shape[-1])
    scores = jnp.einsum("hgtd,hsd->hgts", query, cache.keys) * scale
    visible = jnp.broadcast_to(visible, scores.shape)
    scores = jnp.where(visible, scores, _MASKED)
    top = jnp.max(scores, axis=-1)
    weights = jnp.where(visible, jnp.exp(scores - top[..., None]), 0.0)
    output = jnp.einsum("hgts,hsd->hgtd", weights, cache.values)
    return Part(top, jnp.sum(weights, axis=-1), output)


def merge(*parts: Part) -> Float[Array, "H G T D"]:
    """Softmax attention over the slots of all parts; one of them must see a slot."""
    top = functools.reduce(jnp.maximum, [part.top for part in parts])
    shares = [jnp.exp(part.top - top) for part in parts]
    total = sum(a * part.total for a, part in zip(shares, parts, strict=True))
    output = sum(a[..., None] * part.output for a, part in zip(shares, parts, strict=True))
    return output / total[..., None]  # pyright: ignore[reportIndexIssue, reportOperatorIssue]


def attend_filled(
    query: Query,
    cache: Cache,
    filled: Int[Array, ""],
    written: Bool[Array, "S"] | None = None,
    row: Int[Array, ""] | None = None,
) -> Part:
    """Attention of one query (T = 1) over the first `filled` slots of a suffix, or none.

    Only those, rounded up to 32 times a power of two, are read; of them the `written`, if given.
    `filled` must not be batched under `vmap`: then the choice of size stays a branch. With a
    `row`, the cache is that row of an array of caches, of which no more is copied.
    """
    slots = cache.keys.shape[-2]

    def over(size: int) -> Part:
        visible = (jnp.arange(size, dtype=filled.dtype) < filled)[None, :]
        if written is not None:
            visible = visible & written[None, :size]
        return attend(query, Cache(*(_first(x, size, row) for x in cache)), visible)

    sizes = [BUCKET]
    while sizes[-1] < slots:
        sizes.append(2 * sizes[-1])
    branches = [lambda size=size: over(min(size, slots)) for size in sizes]
    return jax.lax.switch(sum((filled > size).astype(int) for size in sizes[:-1]), branches)


def _first(x: Array, size: int, row: Int[Array, ""] | None) -> Float[Array, "H T D"]:
    if row is None:
        return x[:, :size]
    zero = jnp.zeros_like(row)
    shape = (1, x.shape[1], size, x.shape[3])
    return jax.lax.dynamic_slice(x, (row, zero, zero, zero), shape)[0]


def write(
    cache: Cache, keys: Float[Array, "H T D"], values: Float[Array, "H T D"], slot: Int[Array, ""]
) -> Cache:
    """The cache with T keys and values from `slot` on; in place if `slot` is not batched."""
    zero = jnp.zeros_like(slot)
    return Cache(
        *(
            jax.lax.dynamic_update_slice(old, new, (zero, slot, zero))
            for old, new in zip(cache, (keys, values), strict=True)
        )
    )
