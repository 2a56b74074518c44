"""Backward simulation: each path, weighted by the run's Z-hat, is properly weighted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import tiny_models as tiny

from feynkac import inference, ppl
from feynkac.inference import SMC, Systematic, smoothing
from feynkac.inference.smoothing.backward import drawn_path
from feynkac.inference.smoothing.failure import BOUND, MEMORY
from feynkac.models.finite import HiddenMarkovModel

KEY = jax.random.key(97)
LENGTH = 4
MOVE = jnp.array([[0.6, 0.4, 0.0], [0.1, 0.8, 0.1], [0.3, 0.1, 0.6]])
EMIT = jnp.array([[0.7, 0.3, 0.0], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])


def chain():
    """Three states with a forbidden move and a forbidden symbol."""
    model = HiddenMarkovModel(jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.log(MOVE), jnp.log(EMIT))
    symbols = jnp.array([0, 1, 2, 1])
    return model, symbols, ppl.Target(model.state_space(LENGTH), (symbols,))


def proper(exact, smc, methods, features, runs=2**13):
    """Largest |z| of E[Z-hat f(path)] = Z E_post[f] for each method."""

    def one(key):
        forward = smoothing.forward(jax.random.fold_in(key, 0), smc, exact.target)
        z = jnp.exp(forward.log_evidence - exact.log_evidence)
        paths = [drawn_path(jax.random.fold_in(key, 1), forward, m) for m in methods]
        ok = jnp.stack([failure.code == 0 for _, _, failure in paths])
        # A dead run has no path and counts as zero.
        alive = ~jnp.isneginf(forward.log_evidence)
        return [jnp.where(alive, z * features(c), 0.0) for c, _, _ in paths], ok | ~alive

    values, ok = jax.jit(jax.vmap(one))(jax.random.split(KEY, runs))
    want = exact.expectation(features)
    assert np.asarray(ok).all()
    worst = []
    for v in values:
        v = np.asarray(v, np.float64)
        error = np.hypot(v.std(0, ddof=1) / np.sqrt(runs), 1e-6)
        worst.append(np.abs((v.mean(0) - want) / error).max())
    return np.array(worst)


def pairs(choices):
    """Each state, and each with the next."""
    z = jax.nn.one_hot(choices["z"], 3)
    return jnp.concatenate([z.ravel(), (z[:-1, :, None] * z[1:, None, :]).ravel()])


def test_methods_are_properly_weighted():
    _, _, target = chain()
    exact = inference.exact.enumerate(target)
    smc = SMC(3, Systematic(ess_threshold=0.9))
    methods = [smoothing.Exact(), smoothing.MCMC(2), smoothing.Rejection(0.0, 2)]
    assert (proper(exact, smc, methods, pairs) < 4).all()


@pytest.mark.slow
def test_states_that_remember_and_end():
    """The mood stays and texts end: futures are followed until they agree."""
    exact = inference.exact.enumerate(tiny.text(tiny.MILD, tiny.Ending(True)))
    smc = SMC(2, tiny.resampler(inference.SSP, 1.0), tiny.STEP)

    def features(c):
        hits = jax.nn.one_hot(c["token"], 3).ravel()
        mood = c["mood"].astype(float)
        return jnp.concatenate([mood[None], hits, mood * hits])

    methods = [smoothing.Exact(), smoothing.MCMC(1), smoothing.Genealogy()]
    assert (proper(exact, smc, methods, features) < 4).all()


@pytest.mark.slow
def test_what_rejection_says():
    _, _, target = chain()
    forward = smoothing.forward(KEY, SMC(16), target)
    low = smoothing.backward(KEY, forward, smoothing.Rejection(-3.0), 8)
    assert low.failure.code == BOUND
    with pytest.raises(inference.InferenceError, match="larger bound"):
        low.failure.throw()
    # The mood is none of a step's own choices.
    forward = smoothing.forward(KEY, SMC(16), tiny.text())
    wrong = smoothing.backward(KEY, forward, smoothing.Rejection(2.0), 8)
    assert wrong.failure.code == MEMORY
    assert smoothing.marginals(forward).failure.code == MEMORY


@pytest.mark.slow
def test_paths_have_many_ancestors():
    """Genealogy collapses, backward draws do not."""
    model, _, _ = chain()
    symbols = jnp.tile(jnp.array([0, 1, 1, 2]), 10)
    target = ppl.Target(model.state_space(40), (symbols,))
    forward = smoothing.forward(KEY, SMC(16, Systematic(ess_threshold=1.0)), target)
    first = [
        len(np.unique(smoothing.backward(KEY, forward, m, 64).indices[:, 5]))
        for m in (smoothing.Genealogy(), smoothing.MCMC(3), smoothing.Exact())
    ]
    assert first[0] <= 3 and first[1] > 3 and first[2] > 5, first
