"""Keys of particles: one hash a draw, made for many particles that draw at once.

The counter-based design of Salmon et al. (2011), "Parallel random numbers: as easy as 1, 2, 3":
Threefry-2x32 with 20 rounds, as JAX has it. A key is two words K that all particles of a move share
and the particle's number i. Draws are Threefry(K, (i, 0)), Threefry(K, (i, 1)), ...; folding and
splitting change K only. So the hash that leads to a site is one for all particles, and each of them
pays for its draws alone, where a key of its own would cost two hashes before the first draw.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import define_prng_impl
from jaxtyping import Array, ArrayLike, Int, PRNGKeyArray, UInt32

# What a hash is for is in its key, so that no two uses share a block.
_DRAW, _FOLD, _SPLIT, _NEST = (
    np.uint32(x) for x in (0x9E3779B9, 0x7F4A7C15, 0xF39CC060, 0x5CEDC834)
)
_PARITY = np.uint32(0x1BD11BDA)
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def particle_key(key: PRNGKeyArray, i: Int[ArrayLike, ""]) -> PRNGKeyArray:
    """The key of particle `i` of a move whose key is `key`: any number below 2^32.

    Law: as of `jax.random.fold_in(key, i)`, independent over i and of all else that is made of
    `key`; the numbers are others.
    """
    words = jax.random.key_data(key)
    if words.shape == (2,):
        high, low = words[0], words[1]
    elif words.shape == (3,) and key.dtype == _DTYPE:  # a particle's own run
        high, low = _threefry(words[0] ^ _NEST, words[1], words[2], jnp.zeros_like(words[2]))
    else:
        high, low = jax.random.bits(key, (2,), jnp.uint32)
    data = jnp.stack([high, low, jnp.asarray(i).astype(jnp.uint32)])
    return jax.random.wrap_key_data(data, impl=_IMPLEMENTATION)


def plain_key(key: PRNGKeyArray) -> PRNGKeyArray:
    """A key as it is, of a particle one of JAX's default kind: some of its draws need that."""
    if key.dtype != _DTYPE:
        return key
    words = jax.random.key_data(key)
    pair = jnp.stack(_threefry(words[0] ^ _NEST, words[1], words[2], jnp.ones_like(words[2])))
    return jax.random.wrap_key_data(pair, impl="threefry2x32")


@jax.jit
def _threefry(
    k0: UInt32[Array, "*a"],
    k1: UInt32[Array, "*a"],
    x0: UInt32[Array, "*b"],
    x1: UInt32[Array, "*b"],
) -> tuple[UInt32[Array, "..."], UInt32[Array, "..."]]:
    """Threefry-2x32, 20 rounds: unrolled, so that it becomes part of what uses it."""
    keys = (k0, k1, k0 ^ k1 ^ _PARITY)
    x0, x1 = x0 + keys[0], x1 + keys[1]
    for block in range(5):
        for rotation in _ROTATIONS[block % 2]:
            x0 = x0 + x1
            x1 = (x1 << np.uint32(rotation)) | (x1 >> np.uint32(32 - rotation))
            x1 = x0 ^ x1
        x0 = x0 + keys[(block + 1) % 3]
        x1 = x1 + keys[(block + 2) % 3] + np.uint32(block + 1)
    return x0, x1


def _bits(key, bit_width, shape):
    """Random bits: element j of 32 bits is word j % 2 of block j // 2."""
    size = math.prod(shape)
    words = size * 2 if bit_width == 64 else size
    blocks = -(-words // 2)
    if blocks >= 2**32:
        raise NotImplementedError("a particle draws at most 2^33 numbers at a site")
    k0, k1, i = key[0] ^ _DRAW, key[1], key[2]
    if blocks == 1:
        x0, x1 = _threefry(k0, k1, i, jnp.zeros_like(i))
        pair = (x0.reshape(1), x1.reshape(1))
    else:
        counts = jax.lax.iota(jnp.uint32, blocks)
        pair = _threefry(k0, k1, jnp.broadcast_to(i, (blocks,)), counts)
    if bit_width == 64:
        high, low = (x.astype(jnp.uint64) for x in pair)
        return ((high << np.uint64(32)) | low).reshape(shape)
    bits = pair[0] if words == 1 else jnp.stack(pair, axis=-1).reshape(-1)[:words]
    kinds = {8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32}
    return bits.astype(kinds[bit_width]).reshape(shape)


def _fold_in(key, data):
    data = jnp.asarray(data).astype(jnp.uint32)
    k0, k1 = _threefry(key[0] ^ _FOLD, key[1], jnp.zeros_like(data), data)
    return jnp.stack([k0, k1, key[2]])


def _split(key, shape):
    counts = jax.lax.iota(jnp.uint32, math.prod(shape))
    k0, k1 = _threefry(key[0] ^ _SPLIT, key[1], jnp.zeros_like(counts), counts)
    keys = jnp.stack([k0, k1, jnp.broadcast_to(key[2], counts.shape)], axis=-1)
    return keys.reshape(*shape, 3)


def _seed(seed):
    words = jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))
    return jnp.concatenate([words, jnp.zeros(1, jnp.uint32)])


_IMPLEMENTATION = define_prng_impl(
    key_shape=(3,),
    seed=_seed,
    split=_split,
    random_bits=_bits,
    fold_in=_fold_in,
    name="feynkac_particle",
    tag="fkp",
)
_DTYPE = jax.random.key_dtype(_IMPLEMENTATION)
