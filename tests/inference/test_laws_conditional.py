"""Conditional SMC leaves the posterior invariant with two particles, and E[1/Z-hat] = 1/Z."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import tiny_models as tiny

from feynkac import inference, ppl
from feynkac.inference import SMC
from feynkac.ppl.laws.invariance import moving
from feynkac.ppl.laws.result import decide, standardized
from feynkac.ppl.laws.statistics import batches, moments
from feynkac.ppl.status import UNSUPPORTED

KEY = jax.random.key(23)


class Conditional(eqx.Module):
    """Run with the choices retained, then pick by weight."""

    smc: SMC
    target: ppl.Target

    def __call__(self, key, choices):
        key_run, key_pick = jax.random.split(key)
        particles = self.smc.run_conditional(key_run, self.target, choices)
        index = particles.pick(key_pick)
        return jax.tree.map(lambda x: x[index], particles.choices)


@pytest.fixture(scope="module")
def posterior():
    return inference.exact.enumerate(tiny.text(tiny.MILD, tiny.Ending(True)))


@pytest.fixture(scope="module")
def unfinished():
    return inference.exact.enumerate(tiny.text(tiny.MILD, tiny.Ending(False)))


CASES = [(r, p, t) for r in tiny.RESAMPLERS for p, t in ((None, 1.0), (tiny.BOTH, 0.8))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("resampler", "proposal", "threshold"),
    CASES,
    ids=lambda x: "guided" if x is tiny.BOTH else type(x).__name__,
)
def test_posterior_is_invariant(resampler, proposal, threshold, posterior, unfinished):
    exact = posterior if proposal else unfinished
    smc = SMC(2, tiny.resampler(type(resampler), threshold), proposal)
    measure = moving(Conditional(smc, exact.target), exact, None, 2)
    decide("invariance", measure, KEY, 2**15, "").check()


class _Inverse(eqx.Module):
    """Z / Z-hat of a run with a posterior draw retained."""

    smc: SMC
    target: ppl.Target
    choices: dict
    log_probs: jax.Array
    log_evidence: jax.Array

    def __call__(self, key):
        key_start, key_run = jax.random.split(key)
        start = jax.random.categorical(key_start, self.log_probs)
        retained = jax.tree.map(lambda x: x[start], self.choices)
        p = self.smc.run_conditional(key_run, self.target, retained)
        at = jax.tree.map(lambda x: x[p.position], p.choices)
        same = [jnp.all(a == b) for a, b in zip(*map(jax.tree.leaves, (at, retained)), strict=True)]
        kept = jnp.all(jnp.stack(same)).astype(float)
        return jnp.stack([jnp.exp(self.log_evidence - p.log_evidence), kept])


def test_inverse_evidence(unfinished):
    # A proposal that cannot kill the run: else the law is E[1/Z-hat] = P(Z-hat > 0) / Z.
    posterior = unfinished
    for index in range(6):
        smc = SMC(3, tiny.resampler(type(tiny.RESAMPLERS[index]), 1.0), tiny.INIT)
        log_probs = jnp.asarray(posterior.log_probs, float)
        log_z = jnp.asarray(posterior.log_evidence, float)
        one = _Inverse(smc, posterior.target, posterior.choices, log_probs, log_z)

        def measure(key, runs, one=one):
            mean, error, _ = moments(batches(one, key, runs))
            assert mean[1] == 1, "the retained particle is not at its position"
            return {"1/Z": float(standardized(mean[0] - 1, error[0]))}, []

        decide("E[1/Z-hat] = 1/Z", measure, KEY, 2**14, "").check()


@pytest.mark.slow
def test_one_particle_is_the_retained(posterior):
    smc = SMC(1, inference.SSP(ess_threshold=1.0))
    some = posterior.choices
    kernel = Conditional(smc, posterior.target)
    after = jax.vmap(kernel)(jax.random.split(KEY, len(some["mood"])), some)
    jax.tree.map(np.testing.assert_array_equal, after, some)


@pytest.mark.slow
def test_retained_of_weight_zero():
    target = tiny.text(tiny.MILD, tiny.Ending(True))
    smc = SMC(2, tiny.resampler(inference.Systematic, 1.0))

    def status(key, tokens):
        p = smc.run_conditional(key, target, {"mood": jnp.int32(0), "token": tokens})
        return p.status.code, p.status.step

    # 1 cannot follow 1, 2 cannot follow 2, and the last does not end.
    tokens = jnp.array([[1, 1, 0], [1, 2, 2], [1, 2, 1]])
    code, step = jax.vmap(status)(jax.random.split(KEY, 3), tokens)
    np.testing.assert_array_equal(code, [UNSUPPORTED] * 3)
    np.testing.assert_array_equal(step, [1, 2, 3])
    with pytest.raises(inference.InferenceError, match="retain choices that the target makes"):
        smc.run_conditional(KEY, target, {"mood": 0, "token": tokens[0]}, throw=True)
