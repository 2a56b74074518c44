"""Sequential quasi-Monte Carlo: even points, neighbours on the curve, the law, less variance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac import inference, models, ppl
from feynkac.inference.sqmc import SQMC, hilbert_index, scrambled_sobol
from feynkac.inference.sqmc.filter import Pointwise
from feynkac.inference.sqmc.hilbert import curve_order
from feynkac.ppl import dist

KEY = jax.random.key(0)


def z(samples, truth):
    samples = np.asarray(samples, np.float64)
    return (samples.mean(0) - truth) / (samples.std(0, ddof=1) / np.sqrt(len(samples)))


def test_the_curve_visits_every_cell_once_and_goes_from_neighbour_to_neighbour():
    for d, bits in ((1, 4), (2, 4), (3, 3), (4, 2)):
        axes = np.meshgrid(*[np.arange(2**bits, dtype=np.uint32)] * d, indexing="ij")
        cells = np.stack(axes, -1).reshape(-1, d)
        index = np.asarray(jax.jit(hilbert_index, static_argnums=1)(jnp.asarray(cells), bits))
        np.testing.assert_array_equal(np.sort(index), np.arange(len(cells)))
        path = cells[np.argsort(index)].astype(int)
        assert (np.abs(np.diff(path, axis=0)).sum(1) == 1).all()
    with pytest.raises(ValueError, match="bits"):
        hilbert_index(jnp.zeros((1, 5), jnp.uint32), 7)


def test_points_are_even_and_each_is_uniform():
    n, d = 64, 3
    draw = jax.jit(jax.vmap(lambda k: scrambled_sobol(k, n, d)))
    points = np.asarray(draw(jax.random.split(KEY, 400)))
    assert points.min() > 0 and points.max() < 1
    # A net: one point in each of n cells of every axis, and in 8 x 8 cells of the first two.
    np.testing.assert_array_equal(
        np.sort(np.floor(points * n), axis=1)[..., 0], [np.arange(n)] * 400
    )
    pairs = np.floor(points[..., :2] * 8) @ np.array([8, 1])
    np.testing.assert_array_equal(np.sort(pairs, axis=1), [np.arange(64)] * 400)
    first = points[:, 5]
    assert (np.abs(z(first, 0.5)) < 4).all()
    assert (np.abs(z(first[:, :2] * first[:, 1:], 0.25)) < 4).all()
    again = jax.jit(lambda k: scrambled_sobol(k, n, 1))(jax.random.split(KEY, 400)[7])
    np.testing.assert_array_equal(again[:, 0], points[7, :, 0])


@pytest.mark.parametrize("d", [1, 2])
def test_ancestors_are_drawn_in_order_along_the_curve(d):
    n = 32
    rng = np.random.default_rng(0)
    states, weights = rng.normal(size=(n, d)), rng.gamma(0.5, size=n)
    weights[3] = 0.0
    moves = Pointwise(n, None)
    w, x = jnp.asarray(weights, float), jnp.asarray(states, float)
    got = np.asarray(moves.ancestors(None, KEY, inference.Systematic(), jnp.log(w), x))
    points = np.asarray(moves._points(KEY, 2))
    np.testing.assert_array_equal(points[:, 0], moves._points(KEY, 0)[:, 0])
    assert (np.diff(points[:, 0]) > 0).all()
    order = np.asarray(curve_order(x, w))
    if d == 1:
        np.testing.assert_array_equal(order, np.argsort(states[:, 0]))
    place = np.searchsorted(np.cumsum(weights[order]) / weights.sum(), points[:, 0])
    np.testing.assert_array_equal(got, order[place])


def test_a_move_goes_on_with_the_point_that_chose_the_ancestor():
    """Without weights pasts and presents together are a net: one in each of 8 x 8 cells."""

    def init(ctx):
        return ctx.sample("a", dist.Uniform(0.0, 1.0))

    def step(ctx, state, t):
        ctx.sample("b", dist.Uniform(0.0, 1.0))
        return state

    choices = SQMC(64).run(KEY, ppl.StateSpace(init, step, 1)).choices
    a, b = np.asarray(choices["a"]), np.asarray(choices["b"])[:, 0]
    np.testing.assert_array_equal(np.sort(np.floor(a * 8) * 8 + np.floor(b * 8)), np.arange(64))


@pytest.fixture(scope="module")
def kalman():
    """A linear-Gaussian model of two dimensions, its data and exact answers."""
    model = models.finite.LinearGaussian(
        jnp.zeros(2),
        jnp.eye(2),
        jnp.array([[0.9, 0.2], [-0.1, 0.8]]),
        jnp.array([[0.3, 0.2], [0.2, 0.4]]),
        jnp.array([[1.0, 0.5]]),
        jnp.array([[0.4]]),
    )
    ys = jnp.array([[0.3], [-0.6], [1.2], [0.5], [0.9]])
    target = ppl.Target(model.state_space(5), (ys,))
    return target, float(model.log_evidence(ys)), np.asarray(model.filtered(ys)[0][-1])


def test_unbiased_with_less_variance_than_random_numbers(kalman):
    target, level, mean = kalman
    keys = jax.random.split(KEY, 300)

    def both(key):
        out = []
        for filter_ in (SQMC(128), inference.SMC(128, inference.Systematic(ess_threshold=1.0))):
            p = filter_.run(key, target)
            moment = p.expectation(lambda c: c["x"][-1])
            ratio = jnp.exp(p.log_evidence - level)
            out.append((ratio, ratio * moment, moment))
        return out

    sqmc, smc = jax.jit(jax.vmap(both))(keys)
    for ratio, weighted, _ in (sqmc, smc):
        assert abs(z(ratio, 1)) < 4
        assert (np.abs(z(weighted, mean)) < 4).all()
    assert np.var(sqmc[0]) < np.var(smc[0]) / 4
    assert (np.var(sqmc[2], axis=0) < np.var(smc[2], axis=0) / 4).all()


@pytest.mark.slow
def test_constraints_early_ends_discrete_sites_and_proposals():
    """Enumerable by hand: a chain of bits that may stop, with a constrained site and a guide."""
    rise = jnp.array([0.3, 0.6])

    def init(ctx):
        return jnp.int32(0), jnp.zeros((), bool)

    def step(ctx, state, t):
        last, _ = state
        bit = ctx.sample("bit", dist.Bernoulli(rise[last]))
        stop = ctx.sample("stop", ppl.Token(jnp.log(jnp.array([0.7, 0.3]))))
        ctx.sample("y", dist.Normal(bit.astype(float), 1.0))
        return bit, stop == 1

    def guide(ctx, state, t):
        ctx.sample("bit", dist.Bernoulli(0.5))

    ys = jnp.array([0.8, -0.2, 1.1])
    model = ppl.StateSpace(init, step, 3, done=lambda s: s[1], at_length=ppl.Reject())
    target = ppl.Target(model, (), {"y": ys})

    def z_exact(t, last):
        if t == 3:
            return 0.0
        total = 0.0
        for bit, p in enumerate((1 - float(rise[last]), float(rise[last]))):
            seen = np.exp(-0.5 * (float(ys[t]) - bit) ** 2) / np.sqrt(2 * np.pi)
            total += p * seen * (0.3 + 0.7 * z_exact(t + 1, bit))
        return total

    # Data after a stop are no part of the density.
    exact = z_exact(0, 0)
    for proposal in (None, ppl.Proposal(guide)):
        run = jax.jit(jax.vmap(lambda k, q=proposal: SQMC(16, q).run(k, target).log_evidence))
        levels = run(jax.random.split(KEY, 400))
        assert abs(z(np.exp(levels) / exact, 1)) < 4


def test_errors_say_what_to_do(kalman):
    def init(ctx):
        return jnp.zeros(())

    def run(step, **more):
        SQMC(4, **more).run(KEY, ppl.Target(ppl.StateSpace(init, step, 2)))

    with pytest.raises(ppl.ProgramError, match="inverse distribution"):
        run(lambda ctx, s, t: s + ctx.sample("p", dist.Poisson(3.0)).astype(float))
    with pytest.raises(NotImplementedError, match="SMC"):
        SQMC(4).random_weighted(KEY, kalman[0])
    with pytest.raises(ValueError, match="at least one"):
        SQMC(0)
