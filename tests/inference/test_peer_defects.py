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
from feynkac.ppl.feynman_kac import FeynmanKac, Retained
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


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.slow
def test_a_reference_that_enters_with_its_final_weight(final):
    """A sweep of particle Gibbs at N = 2, exact unless the retained particle is weighed ahead."""
    exact = inference.exact.enumerate(tiny.text(3 * tiny.MILD))
    view, runs = FeynmanKac(exact.target), 2**15
    first, later = jax.vmap(view.split)(exact.choices)
    whole = jnp.asarray(exact.log_probs + exact.log_evidence, float)
    whole -= jnp.log(jnp.asarray([_prior(i, exact) for i in range(len(whole))], float))

    place = jnp.array([27, 9, 3, 1])
    codes = exact.choices["mood"] * 27 + exact.choices["token"] @ place[1:]

    def sweep(i, key):
        def at(tree):
            return jax.tree.map(lambda x: x[i], tree)

        here = jnp.array([True, False])
        moved = jax.vmap(lambda k, h: view.init(k, {}, Retained(at(first), h)))(
            jax.random.split(key, 2), here
        )
        state, log_w = moved.state, moved.log_potential
        tokens = jnp.zeros((2, tiny.LENGTH), jnp.int32)
        mood = moved.choices["mood"]
        for t in range(tiny.LENGTH):
            key_t = jax.random.fold_in(key, t)
            ahead = log_w.at[0].set(whole[i]) if final and t == 1 else log_w
            a = jnp.array([0, 1]).at[1].set(jax.random.categorical(key_t, ahead))
            log_w = jnp.full(2, jax.nn.logsumexp(log_w))
            state, tokens, mood = jax.tree.map(lambda x, a=a: x[a], (state, tokens, mood))
            row = jax.tree.map(lambda x, t=t: x[t], at(later))
            moved = jax.vmap(
                lambda k, s, h, t=t, row=row: view.step(k, {}, s, jnp.int32(t), Retained(row, h))
            )(jax.random.split(jax.random.fold_in(key_t, 1), 2), state, here)
            state, log_w = moved.state, log_w + moved.log_potential
            tokens = tokens.at[:, t].set(moved.choices["token"])
        pick = jax.random.categorical(jax.random.fold_in(key, 9), log_w + jax.vmap(view.end)(state))
        code = mood[pick] * 27 + tokens[pick] @ place[1:]
        return jnp.argmax(codes == code), jnp.any(codes == code)

    @jax.jit
    @jax.vmap
    def sweeps(key, start):
        return jax.lax.scan(sweep, start, jax.random.split(key, 8))

    starts = jax.random.categorical(KEY, jnp.asarray(exact.log_probs, float), shape=(runs,))
    ends, possible = sweeps(jax.random.split(KEY, runs), starts)
    assert possible.all()
    probs = np.exp(exact.log_probs)
    counts = np.bincount(ends, minlength=len(probs))
    z = (counts - runs * probs) / np.sqrt(runs * probs * (1 - probs))
    assert (np.abs(z).max() > 6) if final else (np.abs(z).max() < 4.2), z


def _prior(i, exact):
    """The prior probability of the i-th posterior choice."""
    choices = jax.tree.map(lambda x: x[i], exact.choices)
    trace, _ = exact.target.model.generate(KEY, choices, *exact.target.args)
    return float(jnp.exp(trace.score))
