"""Particles that finish early keep their weight; a run stops when all are done."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from feynkac import inference, ppl
from feynkac.inference import SMC
from feynkac.ppl import dist

KEY = jax.random.key(9)
N, LENGTH = 32, 6


def _init(ctx, ends, factors):
    kind = ctx.sample("kind", dist.Bernoulli(probs=0.5))
    return {"kind": kind, "t": jnp.zeros((), jnp.int32), "end": ends[kind]}


def _step(ctx, state, t, ends, factors):
    ctx.sample("token", ppl.Token(jnp.array([-jnp.inf, 0.0, 0.0])))
    ctx.factor("fit", factors[t])
    return {**state, "t": state["t"] + 1}


def _done(state):
    return state["t"] >= state["end"]


@functools.cache
def smc():
    return SMC(N, inference.Systematic(ess_threshold=0.9))


def run(ends, factors):
    target = ppl.Target(ppl.StateSpace(_init, _step, LENGTH, _done), (jnp.asarray(ends), factors))
    return smc().run(KEY, target)


def test_finished_particles_are_left_alone():
    """Kinds end after 1 and 4 steps; steps that no particle takes would give NaN."""
    factors = jnp.array([0.1, 0.2, 0.3, 0.4, jnp.nan, jnp.nan])
    p = run([1, 4], factors)
    lengths = np.asarray(p.lengths)
    np.testing.assert_array_equal(lengths, np.where(p.choices["kind"] == 1, 4, 1))
    assert set(lengths) == {1, 4} and p.status
    later = np.arange(LENGTH) >= lengths[:, None]
    np.testing.assert_array_equal(np.asarray(p.choices["token"]) == 0, later)
    # Without resampling the weights are those of each particle's own steps.
    total = np.cumsum(factors)[lengths - 1]
    assert not p.resampled.any()
    np.testing.assert_allclose(p.log_weights, total, rtol=1e-5)
    np.testing.assert_array_equal(p.ancestors, np.tile(np.arange(N), (LENGTH, 1)))
    np.testing.assert_array_equal(p.log_evidence_history[4:], np.full(3, p.log_evidence))


def test_resampling_goes_on_among_the_finished():
    p = run([1, 4], jnp.array([0.0, 4.0, 0.0, 0.0, jnp.nan, jnp.nan]))
    assert p.status and np.flatnonzero(p.resampled).tolist() == [2]
    assert np.ptp(np.asarray(p.log_weights)) == 0
    later = np.arange(LENGTH) >= np.asarray(p.lengths)[:, None]
    np.testing.assert_array_equal(np.asarray(p.choices["token"]) == 0, later)
    np.testing.assert_array_equal(p.ancestors[3:], np.tile(np.arange(N), (3, 1)))
    np.testing.assert_array_equal(p.lengths, np.where(p.choices["kind"] == 1, 4, 1))


def test_done_after_init():
    p = run([0, 0], jnp.full(LENGTH, jnp.nan))
    assert p.status and (np.asarray(p.lengths) == 0).all() and p.log_evidence == 0
    assert not np.asarray(p.choices["token"]).any()


def _counted(ctx, state, t, count):
    ctx.sample("token", ppl.Token(jnp.zeros(2)))
    jax.debug.callback(count, t)
    return {**state, "t": state["t"] + 1}


def _first(ctx):
    return {"t": jnp.zeros((), jnp.int32), "end": jnp.int32(2)}


def test_the_run_stops_when_all_are_done():
    seen = set()

    def step(ctx, state, t):
        return _counted(ctx, state, t, lambda t: seen.add(int(t)))

    jax.block_until_ready(SMC(3).run(KEY, ppl.StateSpace(_first, step, LENGTH, _done)).log_weights)
    jax.effects_barrier()
    assert seen == {0, 1}
