"""Training on fresh data: the loss falls to that of the exact answer, and a network is a pytree."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from feynkac import models


def regression(net, key):
    """Negative log score of N(net(x), 1) for y ~ N(2 x - 1, 1): at best (1 + log 2 pi) / 2."""
    key_x, key_y = jax.random.split(key)
    x = jax.random.normal(key_x, (256, 1))
    y = 2 * x - 1 + jax.random.normal(key_y, (256, 1))
    return jnp.mean(0.5 * (y - net(x)) ** 2 + 0.5 * jnp.log(2 * jnp.pi))


def test_a_network_learns_and_is_a_function():
    net = models.amortized.network(nnx.Linear(1, 1, rngs=nnx.Rngs(jax.random.key(0))))
    fit = models.amortized.train(
        jax.random.key(1), net, regression, 400, learning_rate=0.1, every=200, progress=False
    )
    assert fit.status.ok
    exact = 0.5 * (1 + np.log(2 * np.pi))
    error = np.sqrt(0.5 / (256 * 100))
    assert abs(-fit.values[-100:].mean() - exact) < 4 * error
    np.testing.assert_allclose(fit.params(jnp.ones((1, 1))), 1.0, atol=0.05)
    np.testing.assert_array_equal(fit.params.module(jnp.ones((3, 1))), fit.params(jnp.ones((3, 1))))
