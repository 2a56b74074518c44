"""Defects met in other libraries: their form is rejected by the law checkers, ours is not.

Each defect is planted in a short filter, written out here, which without it passes.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import tiny_models as tiny

from feynkac import inference
from feynkac.inference.resampling.cdf import invert, scaled_cdf
from feynkac.ppl.feynman_kac import FeynmanKac
from feynkac.ppl.laws.proper_weighting import weighting
from feynkac.ppl.laws.result import decide

KEY = jax.random.key(17)
N = 3


class Written(eqx.Module):
    """A bootstrap filter that resamples before every step; the flags plant one defect each."""

    twice: jax.Array  # particles drawn by weight keep the weight too
    early: jax.Array  # the first move's potential is left to the end, where selection has passed
    cut: jax.Array  # texts that were cut at the maximum length count as ended

    def run(self, key, target):
        view = FeynmanKac(target)
        keys = jax.random.split(key, N)
        moved = jax.vmap(lambda k: view.init(k, {}))(keys)
        state, log_w = moved.state, moved.log_potential
        choices = {"mood": moved.choices["mood"], "token": jnp.zeros((N, tiny.LENGTH), jnp.int32)}
        for t in range(tiny.LENGTH):
            key_t = jax.random.fold_in(key, t)
            a = jax.random.categorical(key_t, log_w, shape=(N,))
            mean = jnp.full(N, jax.nn.logsumexp(log_w) - jnp.log(float(N)))
            dead = jnp.isneginf(mean)
            log_w = jnp.where(dead, mean, mean + jnp.where(self.twice, log_w[a] - mean, 0.0))
            state, choices = jax.tree.map(lambda x, a=a: x[a], (state, choices))
            keys = jax.random.split(jax.random.fold_in(key_t, 1), N)
            moved = jax.vmap(lambda k, s, t=t: view.step(k, {}, s, jnp.int32(t)))(keys, state)
            state = moved.state
            choices["token"] = choices["token"].at[:, t].set(moved.choices["token"])
            log_w = log_w + jnp.where(self.early & (t == 0), 2.0, 1.0) * moved.log_potential
        log_w = log_w + jnp.where(self.cut, 0.0, jax.vmap(view.end)(state))
        return _Particles(log_w, choices, jax.nn.logsumexp(log_w) - jnp.log(float(N)))


class _Particles(eqx.Module):
    log_weights: jax.Array
    choices: dict
    log_evidence: jax.Array


@pytest.fixture(scope="module")
def exact():
    return inference.exact.enumerate(tiny.text(tiny.MILD, tiny.Ending(True)))


@pytest.mark.parametrize("defect", [None, "twice", "early", "cut"])
def test_a_filter_with_one_defect(defect, exact):
    flags = (jnp.asarray(defect == name) for name in ("twice", "early", "cut"))
    measure = weighting(Written(*flags), exact.target, exact)
    result = decide("proper weighting", measure, KEY, 2**13, "")
    assert result.ok is (defect is None), result
    if defect:
        assert result.max_abs_z > 20


def test_inverse_cdf_by_clipping():
    """clip(searchsorted(cumsum(w), u)) selects the dead at both ends."""
    weights = jnp.array([0.0, 0.3, 0.0, 0.6, 0.1 - 1e-6, 0.0])
    for u in (0.0, 1.0 - 2**-24):
        clipped = jnp.clip(jnp.searchsorted(jnp.cumsum(weights), u), 0, 5)
        ours = invert(scaled_cdf(weights), jnp.array([u]))[0]
        assert weights[clipped] == 0 and weights[ours] > 0


def test_a_reference_weighed_by_its_end(exact):
    """A retained particle enters each step with its weight so far, not its last one."""
    smc = inference.SMC(2, inference.Multinomial(ess_threshold=1.0))
    retained = jax.tree.map(lambda x: x[-1], exact.choices)
    view = FeynmanKac(exact.target)
    p = smc.run_conditional(KEY, exact.target, retained)
    first = view.init(KEY, view.split(retained)[0])
    history = np.exp(np.asarray(p.log_evidence_history))
    # After init both have potentials of the first factor only: 0.3 or -0.2.
    possible = [0.5 * (np.exp(first.log_weight) + np.exp(other)) for other in (0.3, -0.2)]
    assert min(abs(history[0] - x) for x in possible) < 1e-5
