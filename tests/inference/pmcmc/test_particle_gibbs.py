"""Particle Gibbs leaves the posterior invariant with two particles, memory and early ends included.

The mood of `tiny_models` stays with a text: states of different moods never agree again, so that
ancestor and backward sampling follow the retained tokens to the end.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import tiny_models as tiny

from feynkac import inference, ppl
from feynkac.inference import SMC, Systematic
from feynkac.inference.mcmc import Chain
from feynkac.inference.pmcmc import ParticleGibbs
from feynkac.ppl.laws.invariance import OnTraces, moving
from feynkac.ppl.laws.result import decide
from feynkac.ppl.status import UNSUPPORTED

KEY = jax.random.key(71)
RUNS = 2**14


@pytest.fixture(scope="module")
def posteriors():
    return [inference.exact.enumerate(tiny.text(tiny.MILD, tiny.Ending(r))) for r in (False, True)]


def holds(kernel, exact):
    measure = moving(OnTraces(kernel, exact.target), exact, None, 2)
    decide("invariance", measure, KEY, RUNS, "").check()


@pytest.mark.parametrize(
    ("kind", "threshold"), [(Systematic, 1.0), (inference.Killing, 0.7), (None, 0.0)]
)
@pytest.mark.slow
def test_ancestor_sampling(kind, threshold, posteriors):
    """Resampling at every step, sometimes, and never."""
    smc = SMC(2, tiny.resampler(kind, threshold))
    holds(ParticleGibbs(smc, ancestor_sampling=True), posteriors[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ancestor", "backward", "proposal", "reject"),
    [
        (False, False, tiny.STEP, True),
        (True, False, tiny.BOTH, True),
        (False, True, None, True),
        (True, True, None, False),
    ],
)
def test_invariance(ancestor, backward, proposal, reject, posteriors):
    smc = SMC(2, tiny.resampler(inference.SSP, 0.8), proposal)
    holds(ParticleGibbs(smc, ancestor, backward), posteriors[reject])


@pytest.mark.slow
def test_tempered_constrained_and_annealed():
    """A power of the likelihood, a token that is given, and priorities that are not weights."""
    some = ppl.Partial(jnp.array([1, 0, 2]), jnp.array([False, False, True]))
    target = tiny.text(tiny.MILD, constraints={"token": some}).tempered(0.6)
    twist = ppl.Twist(lambda state, t, *args: jnp.where(state["mood"] == 1, 0.7, -0.4))
    smc = SMC(3, Systematic(ess_threshold=0.9), twist=twist)
    holds(ParticleGibbs(smc, ancestor_sampling=True), inference.exact.enumerate(target))


@pytest.mark.slow
def test_as_rejuvenation():
    """Inside a filter its target is the steps so far."""
    exact = inference.exact.enumerate(tiny.text(tiny.MILD, tiny.Ending(True)))
    kernel = ParticleGibbs(SMC(2, Systematic(ess_threshold=1.0)), ancestor_sampling=True)
    smc = SMC(2, Systematic(ess_threshold=0.9), kernel=kernel)
    measure = ppl.laws.proper_weighting
    measure(KEY, smc, exact.target, runs=2**12).check()


def impossible():
    target = tiny.text()
    kernel = ParticleGibbs(SMC(2, tiny.resampler(Systematic, 1.0)), ancestor_sampling=True)
    # 2 cannot follow 2.
    return target, kernel, {"mood": jnp.int32(0), "token": jnp.array([1, 2, 2])}


@pytest.mark.slow
def test_no_move_from_the_impossible():
    target, kernel, choices = impossible()
    trace = target.model.run(KEY, target.joined(choices), target.args).trace()
    moved = kernel.move(KEY, target, Chain(trace, None, jnp.zeros(())))
    np.testing.assert_array_equal(moved.trace.choices["token"], [1, 2, 2])
    assert moved.acceptance == 0


@pytest.mark.slow
def test_status_of_the_impossible():
    target, kernel, choices = impossible()
    code = jax.jit(lambda key: kernel.sweep(key, target, choices).status.code)(KEY)
    assert code == UNSUPPORTED


def test_what_it_refuses():
    with pytest.raises(ValueError, match="rejuvenation kernel"):
        ParticleGibbs(SMC(2, kernel=inference.MH(ppl.select("token"))))
    heuristic = inference.annealing.HeuristicEntropic()
    with pytest.raises(ValueError, match="keeps it"):
        ParticleGibbs(SMC(2, annealing=heuristic))


def _hot_init(ctx):
    return ppl.Hot(jnp.zeros(3))


def _hot_step(ctx, state, t):
    x = ctx.sample("x", ppl.dist.Bernoulli(probs=jax.nn.sigmoid(jnp.sum(state.value))))
    ctx.factor("fit", jnp.where(x == 1, 0.3, 0.0) * (1 + jnp.sum(state.value)))
    return ppl.Hot(state.value.at[t].set(x.astype(float)))


def test_backward_sampling_needs_cold_states():
    target = ppl.Target(ppl.StateSpace(_hot_init, _hot_step, 3))
    kernel = ParticleGibbs(SMC(2), backward_sampling=True)
    with pytest.raises(ppl.ProgramError, match="inside Hot"):
        kernel.sweep(KEY, target, {"x": jnp.zeros(3, jnp.int32)})


@pytest.mark.slow
def test_hot_state_is_followed_to_the_end():
    """A cache that remembers everything."""
    target = ppl.Target(ppl.StateSpace(_hot_init, _hot_step, 3))
    smc = SMC(2, Systematic(ess_threshold=1.0))
    holds(ParticleGibbs(smc, ancestor_sampling=True), inference.exact.enumerate(target))
