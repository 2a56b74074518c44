"""Key-value caches and exact softmax attention in two parts: shared prompt and own suffix.

Softmax over prompt and suffix together is merged from its two parts by their maxima and
normalizers (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018,
arXiv:1805.02867, eq. 4). So the prompt's keys and values exist once, however many particles.

Shapes: H key-value heads, G query heads for each, D the head dimension, S slots of a cache,
T query tokens.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

BUCKET = 16
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


def merge(one: Part, other: Part) -> Float[Array, "H G T D"]:
    """Softmax attention over the slots of both parts; one of them must see a slot."""
    top = jnp.maximum(one.top, other.top)
    a, b = jnp.exp(one.top - top), jnp.exp(other.top - top)
    total = a * one.total + b * other.total
    return (a[..., None] * one.output + b[..., None] * other.output) / total[..., None]


def attend_filled(
    query: Query, cache: Cache, slot: Int[Array, ""], written: Bool[Array, "S"] | None = None
) -> Part:
    """Attention of one query (T = 1) over suffix slots 0, ..., `slot`; those `written`, if given.

    Only the filled slots, rounded up to a bucket of 16, are read. `slot` must not be batched under
    `vmap`: then the choice of bucket stays a branch.
    """
    slots = cache.keys.shape[1]

    def over(size: int) -> Part:
        visible = (jnp.arange(size, dtype=slot.dtype) <= slot)[None, :]
        if written is not None:
            visible = visible & written[None, :size]
        return attend(query, Cache(cache.keys[:, :size], cache.values[:, :size]), visible)

    sizes = [min(size, slots) for size in range(BUCKET, slots + BUCKET, BUCKET)]
    branches = [lambda size=size: over(size) for size in sizes]
    return jax.lax.switch(slot // BUCKET, branches)


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
