"""Smoothing marginals against forward-backward and the Rauch-Tung-Striebel smoother."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models
from compiling import OPTIMIZED

from feynkac import ppl
from feynkac.inference import SMC, Multinomial, Systematic, smoothing
from feynkac.models.finite import HiddenMarkovModel, LinearGaussian

KEY = jax.random.key(101)
MOVE = jnp.array([[0.6, 0.4, 0.0], [0.1, 0.8, 0.1], [0.3, 0.1, 0.6]])
EMIT = jnp.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
LENGTH = 6


def chain():
    model = HiddenMarkovModel(jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.log(MOVE), jnp.log(EMIT))
    return model, jnp.array([0, 1, 2, 1, 1, 0])


def information(model, symbols):
    """The information filter of the chain: uniform artificial priors, time reversed."""

    def init(ctx, log_move, log_emit, symbols):
        return jnp.zeros((), jnp.int32)

    def step(ctx, after, s, log_move, log_emit, symbols):
        t = LENGTH - 1 - s
        ahead = jnp.where(s == 0, jnp.zeros(3), log_move[:, after])
        z = ctx.sample("z", ppl.Token(ahead))
        ctx.factor("rest", jax.nn.logsumexp(ahead) + log_emit[z, symbols[t]])
        return z

    args = (model.log_transition, model.log_emission, symbols)
    return ppl.Target(ppl.StateSpace(init, step, LENGTH), args)


def one_hot(z):
    return jax.nn.one_hot(z, 3)


@pytest.mark.slow
def test_against_forward_backward():
    """Reweighting, two filters, fixed lag and backward paths, over runs."""
    model, symbols = chain()
    target = ppl.Target(model.state_space(LENGTH), (symbols,))
    smc = SMC(512, Systematic(ess_threshold=0.7))

    def one(key):
        forward = smoothing.forward(jax.random.fold_in(key, 0), smc, target)
        back = smoothing.forward(jax.random.fold_in(key, 1), smc, information(model, symbols))
        weighed = smoothing.marginals(forward)
        two = smoothing.two_filter(forward, back, lambda t, c: jnp.zeros(()))
        lagged = smoothing.fixed_lag(forward, 1)
        paths = smoothing.backward(jax.random.fold_in(key, 2), forward, smoothing.MCMC(2), 512)
        means = [m.expectation(one_hot)[1:] for m in (weighed, two, lagged)]
        means.append(paths.expectation(lambda c: one_hot(c["z"])))
        codes = [m.failure.code for m in (weighed, two, lagged, paths)]
        return jnp.stack(means), jnp.stack(codes)

    runs = 32
    several = jax.jit(lambda ks: jax.lax.map(one, ks), compiler_options=OPTIMIZED)
    means, codes = map(np.asarray, several(jax.random.split(KEY, runs)))
    assert (codes == 0).all()
    exact = np.asarray(model.smoothed(symbols))
    lag = np.stack(
        [np.asarray(model.smoothed(symbols[: min(t + 2, LENGTH)]))[t] for t in range(LENGTH)]
    )
    want = np.stack([exact, exact, lag, exact])
    error = np.hypot(means.std(0, ddof=1) / np.sqrt(runs), 1e-6)
    z = (means.mean(0) - want) / error
    # Self-normalised: the bias is of order 1 / 512.
    off = np.maximum(np.abs(means.mean(0) - want) - 1 / 512, 0) / error
    assert (off < 4).all(), z
    assert np.abs(lag - exact).max() > 0.02 and error.max() < 0.01


@pytest.mark.slow
def test_against_rts():
    model = LinearGaussian([0.3], [[1.0]], [[0.9]], [[0.5]], [[1.0]], [[0.4]])
    ys = jnp.array([[0.5], [-0.2], [1.4], [2.0], [0.1]])
    target = ppl.Target(model.state_space(5), (ys,))
    smc = SMC(400, Multinomial(ess_threshold=0.7), model.optimal_proposal())

    def one(key):
        forward = smoothing.forward(key, smc, target)
        weighed = smoothing.marginals(forward).expectation(lambda x: jnp.stack([x, x * x]))[1:]
        paths = smoothing.backward(key, forward, smoothing.Exact(), 200)
        drawn = paths.expectation(lambda c: jnp.stack([c["x"], c["x"] ** 2], axis=1))
        return jnp.stack([weighed, drawn])[..., 0]

    runs = 32
    means = np.asarray(jax.jit(lambda ks: jax.lax.map(one, ks))(jax.random.split(KEY, runs)))
    mean, cov = model.smoothed(ys)
    want = np.stack([mean[:, 0], cov[:, 0, 0] + mean[:, 0] ** 2], axis=1)
    error = means.std(0, ddof=1) / np.sqrt(runs)
    off = np.maximum(np.abs(means.mean(0) - want) - 2 / 400, 0) / error
    assert (off < 4).all(), off


def test_lags_at_the_ends():
    """A lag of zero is the filter, of the whole length the genealogy."""
    target = small_models.hmm(5)
    smc = SMC(8, Systematic(ess_threshold=1.0))
    forward = smoothing.forward(KEY, smc, target)
    particles = smc.run(KEY, target)
    np.testing.assert_array_equal(particles.ancestors, forward.ancestors)
    np.testing.assert_allclose(particles.log_weights, forward.final, rtol=1e-6)
    none, whole = smoothing.fixed_lag(forward, 0), smoothing.fixed_lag(forward, 5)
    np.testing.assert_array_equal(none.states, forward.states)
    np.testing.assert_array_equal(whole.states[1:].T, particles.choices["z"])
    np.testing.assert_allclose(np.exp(whole.log_weights[2]), particles.weights, rtol=1e-5)
