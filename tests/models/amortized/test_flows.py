"""Conditional densities: change of variables, inverses, total mass, draws against densities."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac.models.amortized.density import mixture_density
from feynkac.models.amortized.flows import spline, spline_flow, spline_inverse

KEY = jax.random.key(0)
CONTEXT = jnp.asarray([0.5, -1.0])


def shaken(tree):
    """Every weight moved, so that nothing is right by being zero."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + np.float32(0.1) * rng.standard_normal(x.shape, "f4"), tree)


@pytest.fixture(scope="module")
def heads():
    """An autoregressive flow, coupling layers and a mixture."""

    @eqx.filter_jit
    def made():
        return {
            "autoregressive": spline_flow(KEY, 2, 2, layers=2, width=8, bins=4),
            "coupling": spline_flow(KEY, 3, 2, layers=2, width=8, bins=4, passes=2),
            "mixture": mixture_density(KEY, 2, 2, components=3, width=8, depth=1),
        }

    return shaken(made())


def test_splines_are_inverted_monotone_and_start_as_the_identity():
    x = jnp.linspace(-5.0, 5.0, 401)
    shape = jnp.broadcast_to(jax.random.normal(KEY, (11,)) * 2, (401, 11))

    @jax.jit
    def all_of(x, shape):
        y, log_slope = spline(x, shape, 3.0)
        slope = jax.vmap(jax.grad(lambda x, s: spline(x[None], s[None], 3.0)[0][0]))(x, shape)
        same, flat = spline(x, jnp.zeros_like(shape), 3.0)
        return y, log_slope, slope, spline_inverse(y, shape, 3.0), same, flat

    y, log_slope, slope, back, same, flat = all_of(x, shape)
    assert (np.diff(y) > 0).all()
    np.testing.assert_allclose(jnp.log(slope), log_slope, atol=2e-4)
    np.testing.assert_allclose(back, x, atol=2e-4)
    outside = np.abs(x) >= 3
    np.testing.assert_array_equal(y[outside], x[outside])
    np.testing.assert_allclose(same, x, atol=1e-5)
    np.testing.assert_allclose(flat, 0.0, atol=1e-5)
    assert np.abs(y - x).max() > 0.1


def test_flows_change_variables(heads):
    """Log density = normal log density of the noise + log |det| of the Jacobian; inverses undo."""

    @jax.jit
    def pieces(flow, z, context):
        noise, log_volume = flow.forward(z, context)
        jacobian = jax.jacobian(lambda z: flow.forward(z, context)[0])(z)
        back = flow.inverse(noise, context)
        return noise, log_volume, jacobian, back, flow.log_prob(z, context)

    z, flow = jnp.asarray([0.4, -1.1, 0.7]), heads["coupling"]
    noise, log_volume, jacobian, back, log_prob = pieces(flow, z, CONTEXT)
    log_det = np.linalg.slogdet(np.asarray(jacobian, np.float64))[1]
    np.testing.assert_allclose(log_volume, log_det, atol=1e-4)
    normal = -0.5 * np.sum(np.square(noise)) - 1.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(log_prob, normal + log_det, atol=1e-4)
    np.testing.assert_allclose(back, z, atol=1e-4)
    assert abs(log_det) > 0.05 and np.abs(noise - z).max() > 0.05


def test_densities_have_mass_one_and_are_those_of_the_draws(heads):
    """By quadrature over the plane: mass, and the means of three functions against draws."""
    t = np.linspace(-4.5, 4.5, 301)
    plane = np.stack(np.meshgrid(t, t), axis=-1).reshape(-1, 2)
    # Points sinh t, so that tails are in the sum too.
    grid, area = jnp.asarray(np.sinh(plane), jnp.float32), np.cosh(plane).prod(axis=1) * 0.03**2

    @jax.jit
    def both(head):
        density = jnp.exp(jax.vmap(lambda z: head.log_prob(z, CONTEXT))(grid))
        draws = jax.vmap(lambda k: head.sample(k, CONTEXT))(jax.random.split(KEY, 4000))
        return density, draws

    def functions(z):
        z = np.asarray(z, np.float64)
        return np.stack([z[:, 0], z[:, 1] > 0.3, np.tanh(z[:, 0] * z[:, 1])], axis=1)

    for name in ("autoregressive", "mixture"):
        density, draws = both(heads[name])
        weights = np.asarray(density, np.float64) * area
        assert abs(weights.sum() - 1) < 2e-3, name
        exact, found = weights @ functions(grid), functions(draws)
        z = (found.mean(axis=0) - exact) / (found.std(axis=0) / np.sqrt(len(found)))
        assert np.abs(z).max() < 4, (name, z)


def test_blocks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="between 1 and that many passes"):
        spline_flow(KEY, 2, 2, passes=3)
