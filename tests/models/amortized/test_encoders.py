"""Encoders: sets have no order, what is unknown does not count, sequences have an order."""

import jax
import numpy as np
import pytest

from feynkac.models.amortized.encoders import plain_encoder, sequence_encoder, set_encoder

KEY = jax.random.key(0)
# Two sites of five instances, one of three numbers; and a site without instances.
SHAPES = (((5,), 3), ((5,), 1), ((), 2))


def features(order, known):
    values = np.random.default_rng(0).standard_normal((5, 4), "f4")[order]
    here = np.asarray(known, np.float32)
    values = values * here[:, None]
    return ((values[:, :3], here), (values[:, 3:], here), (np.ones(2, "f4"), np.ones((), "f4")))


@pytest.fixture(scope="module")
def vectors():
    """What both encoders make of: all, all in another order, three, these and rubbish elsewhere."""
    orders = [[0, 1, 2, 3, 4], [3, 1, 4, 0, 2], [0, 1, 2, 3, 4], [0, 1, 2, 4, 3]]
    knowns = [[1] * 5, [1] * 5, [1, 1, 1, 0, 0], [1, 1, 1, 0, 0]]
    cases = [features(o, k) for o, k in zip(orders, knowns, strict=True)]
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *cases)
    makers = (set_encoder, sequence_encoder, plain_encoder)

    @jax.jit
    def made(stacked):
        options = {"width": 8, "outputs": 6, "depth": 1}
        return {f.__name__: jax.vmap(f(KEY, SHAPES, **options))(stacked) for f in makers}

    return made(stacked)


def test_a_set_has_no_order_and_a_sequence_has_one(vectors):
    whole, permuted, *_ = vectors["set_encoder"]
    assert whole.shape == (6,)
    np.testing.assert_allclose(whole, permuted, atol=1e-5)
    whole, permuted, *_ = vectors["sequence_encoder"]
    assert np.abs(whole - permuted).max() > 1e-3
    assert vectors["plain_encoder"].shape == (4, 6 + 5 * 4 + 5 * 2 + 3)


def test_unknown_instances_do_not_count(vectors):
    for name in ("set_encoder", "sequence_encoder"):
        whole, _, first, again = vectors[name]
        np.testing.assert_allclose(first, again, atol=1e-6)
        assert np.abs(whole - first).max() > 1e-3


def test_sites_without_instances_are_not_a_set():
    for make in (set_encoder, sequence_encoder):
        with pytest.raises(ValueError, match="use plain_encoder"):
            make(KEY, (((), 2),))
