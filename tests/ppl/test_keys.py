"""Keys of particles: the hash is Threefry, draws are alike alone and together, none is shared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32

from feynkac import inference, ppl
from feynkac.ppl import dist
from feynkac.ppl.keys import _threefry, particle_key, plain_key

KEY = jax.random.key(0)


def test_the_hash_is_threefry():
    words = jax.random.bits(KEY, (4, 7), jnp.uint32)
    for k0, k1, x0, x1 in np.asarray(words).T[:, :, None]:
        expected = threefry_2x32(
            jnp.concatenate([k0, k1]), jnp.concatenate([x0, x1]).astype(jnp.uint32)
        )
        np.testing.assert_array_equal(jnp.concatenate(_threefry(k0, k1, x0, x1)), expected)


def words(key):
    """Draws of every kind of use of one key, as words."""
    a, b = jax.random.split(key)
    inside = particle_key(jax.random.fold_in(key, 5), jnp.int32(3))
    pieces = [
        jax.random.bits(k, (3,), jnp.uint32)
        for k in (key, a, b, jax.random.fold_in(key, 0), jax.random.fold_in(key, 1), inside)
    ]
    return jnp.concatenate([*pieces, jax.random.bits(plain_key(key), (3,), jnp.uint32)])


def test_no_two_uses_share_a_word_and_together_is_alone():
    made = jax.jit(jax.vmap(lambda i: words(particle_key(KEY, i))))(jnp.arange(500))
    other = jax.jit(jax.vmap(lambda i: words(particle_key(jax.random.key(1), i))))(jnp.arange(500))
    for i in (0, 77, 499):
        np.testing.assert_array_equal(made[i], words(particle_key(KEY, i)))
    taken = np.concatenate([np.asarray(made).ravel(), np.asarray(other).ravel()])
    # Of m words of 32 bits about m^2 / 2^33 pairs are equal by chance.
    pairs = len(taken) ** 2 / 2**33
    assert len(taken) - len(np.unique(taken)) < pairs + 6 * np.sqrt(pairs) + 1


def test_bits_are_fair_and_uncorrelated():
    n = 200_000
    two = jax.jit(
        jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(particle_key(KEY, i), 9), (2,)))
    )(jnp.arange(n))
    x = np.asarray(two, np.float64)
    for values in (x[:, 0], x[:, 1], x[:, 0] * x[:, 1], x[1:, 0] * x[:-1, 0]):
        assert abs(values.mean()) < 4 * values.std() / np.sqrt(n)
    square = x.ravel() ** 2
    assert abs(square.mean() - 1) < 4 * np.sqrt(2 / (2 * n))
    bits = jax.vmap(lambda i: jax.random.bits(particle_key(KEY, i), (), jnp.uint32))(jnp.arange(n))
    ones = np.unpackbits(np.asarray(bits).view(np.uint8).reshape(n, 4), axis=1).mean(0)
    assert (np.abs(ones - 0.5) < 4.5 * 0.5 / np.sqrt(n)).all()


@pytest.mark.x64
def test_every_width_and_shape():
    key = particle_key(KEY, 4)
    for shape in ((), (1,), (2, 3), (0,)):
        for kind in (jnp.uint8, jnp.uint16, jnp.uint32):
            assert jax.random.bits(key, shape, kind).shape == shape
        x = jax.random.normal(key, shape)
        assert x.shape == shape and x.dtype == jnp.zeros(()).dtype and jnp.isfinite(x).all()


def test_sites_that_need_another_kind_of_key_and_runs_inside_runs():
    @ppl.program
    def inner(ctx):
        ctx.sample("n", dist.Poisson(3.0))

    @ppl.program
    def model(ctx):
        g = ctx.sample("g", dist.Gamma(2.0, 1.0))
        ctx.sample("in", ppl.normalize(inner, inference.Importance(2)))
        return g

    n = 4000
    particles = inference.SMC(n, resampler=None).run(KEY, ppl.Target(model))
    assert bool(particles.status)
    g, k = (np.asarray(x, float) for x in (particles.choices["g"], particles.choices["in"]["n"]))
    assert abs(g.mean() - 2) < 4 * np.sqrt(2 / n)
    assert abs(k.mean() - 3) < 4 * np.sqrt(3 / n)
    assert abs(k.var() - 3) < 4 * np.sqrt((3 + 2 * 9) / n)
    assert abs(np.corrcoef(g, k)[0, 1]) < 4 / np.sqrt(n)
