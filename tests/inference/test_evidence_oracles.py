"""Evidence against forward-backward and the Kalman filter, by standard errors over runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac import inference, ppl
from feynkac.models.finite import HiddenMarkovModel, LinearGaussian

KEY = jax.random.key(3)
RUNS = 64


def ratios(smc, target, log_z):
    @jax.jit
    def several(keys):
        return jax.vmap(lambda key: smc.run(key, target).log_evidence)(keys)

    return np.exp(np.asarray(several(jax.random.split(KEY, RUNS)), np.float64) - float(log_z))


def agrees(ratio):
    return abs(ratio.mean() - 1) < 4 * ratio.std(ddof=1) / np.sqrt(RUNS)


@pytest.mark.x64
def test_hidden_markov_model():
    move = jnp.array([[0.8, 0.2, 0.0], [0.1, 0.8, 0.1], [0.0, 0.3, 0.7]])
    emit = jnp.array([[0.7, 0.3, 0.0], [0.1, 0.8, 0.1], [0.0, 0.2, 0.8]])
    hmm = HiddenMarkovModel(jnp.log(jnp.array([0.5, 0.5, 0.0])), jnp.log(move), jnp.log(emit))
    ys = jnp.array([0, 1, 1, 2, 2, 1, 0, 0])
    smc = inference.SMC(1000, inference.Systematic())
    ratio = ratios(smc, ppl.Target(hmm.state_space(8), (ys,)), hmm.log_evidence(ys))
    assert agrees(ratio) and 0.005 < ratio.std() < 0.3


def test_linear_gaussian():
    lg = LinearGaussian(
        jnp.zeros(1), jnp.eye(1), 0.9 * jnp.eye(1), 0.5 * jnp.eye(1), jnp.eye(1), 0.3 * jnp.eye(1)
    )
    ys = jnp.array([0.3, 1.1, 0.2, -0.8, -1.9, -0.4])[:, None]
    target = ppl.Target(lg.state_space(6), (ys,))
    spread = []
    for proposal in (None, lg.optimal_proposal()):
        smc = inference.SMC(1000, inference.SSP(), proposal)
        ratio = ratios(smc, target, lg.log_evidence(ys))
        assert agrees(ratio)
        spread.append(ratio.std())
    # What the optimal proposal is for.
    assert spread[1] < 0.8 * spread[0] < 0.2
