"""Two-part attention against softmax over all slots at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac.models.language.cache import Cache, attend, attend_filled, merge, write

H, G, D, P, S = 2, 3, 8, 20, 40


@pytest.fixture(scope="module")
def arrays():
    keys = jax.random.split(jax.random.key(0), 3)
    query = 3.0 * jax.random.normal(keys[0], (H, G, 1, D))
    caches = (
        Cache(*jax.random.normal(k, (2, H, n, D))) for k, n in zip(keys[1:], (P, S), strict=True)
    )
    return query, *caches


def dense(query, keys, values):
    """Softmax attention in float64 over exactly the given slots."""
    query, keys, values = (np.asarray(x, np.float64) for x in (query, keys, values))
    scores = np.einsum("hgtd,hsd->hgts", query, keys) / np.sqrt(D)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hgts,hsd->hgtd", weights / weights.sum(-1, keepdims=True), values)


@pytest.mark.parametrize("length", [1, 13, P])
def test_merged_parts_equal_dense_attention(arrays, length):
    query, prefix, suffix = arrays

    @jax.jit
    def two_parts(slot):
        visible = (jnp.arange(P) < length)[None, :]
        return merge(attend(query, prefix, visible), attend_filled(query, suffix, slot + 1))

    for slot in (0, 15, 16, 31, 32, 39):
        expected = dense(
            query,
            *(np.concatenate([prefix[i][:, :length], suffix[i][:, : slot + 1]], 1) for i in (0, 1)),
        )
        np.testing.assert_allclose(two_parts(jnp.int32(slot)), expected, rtol=2e-5, atol=2e-6)


def test_a_row_of_caches(arrays):
    query, _, suffix = arrays
    every = Cache(*(jnp.stack([jnp.zeros_like(x), x, -x]) for x in suffix))
    written = jnp.arange(S) % 3 > 0
    for filled in (1, 32, 33, S):
        one = attend_filled(query, suffix, jnp.int32(filled), written)
        row = attend_filled(query, every, jnp.int32(filled), written, jnp.int32(1))
        for a, b in zip(one, row, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_masked_slots_have_weight_zero(arrays):
    query, prefix, _ = arrays
    visible = (jnp.arange(P) < 4)[None, :]
    one = attend(query, prefix, visible)
    other = attend(query, Cache(*(x.at[:, 4:].set(1e6) for x in prefix)), visible)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_nothing_visible_merges_to_the_other_part(arrays):
    query, prefix, suffix = arrays
    nothing = attend(query, prefix, jnp.zeros((1, P), bool))
    whole = attend(query, suffix, jnp.ones((1, S), bool))
    np.testing.assert_allclose(merge(nothing, whole), dense(query, *suffix), rtol=2e-5, atol=2e-6)
    assert not np.any(nothing.total)


def test_write_touches_only_its_slots(arrays):
    _, prefix, _ = arrays
    keys, values = jnp.full((H, 3, D), 7.0), jnp.full((H, 3, D), 9.0)
    written = jax.jit(write)(prefix, keys, values, jnp.int32(5))
    for got, old, value in zip(written, prefix, (7.0, 9.0), strict=True):
        expected = np.array(old)
        expected[:, 5:8] = value
        np.testing.assert_array_equal(got, expected)
