"""Resampling by other priorities than the weights keeps the target: twists, annealing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import tiny_models as tiny

from feynkac import inference, ppl
from feynkac.inference import SMC, SSP, Killing, Lookahead, Multinomial, Systematic
from feynkac.inference.annealing import (
    AdaptiveTempering,
    BaseRule,
    Entropic,
    EntropyRule,
    HeuristicEntropic,
    Ramp,
)
from feynkac.ppl.laws.proper_weighting import weighting
from feynkac.ppl.laws.result import decide

KEY = jax.random.key(5)


def _log_psi(state, t, table, factors):
    place = (2 * state["last"] + t).astype(float)
    return 0.8 * jnp.cos(place) - 0.5 * state["mood"].astype(float)


TWIST = ppl.Twist(_log_psi)
CASES = {
    "twist": SMC(4, Multinomial(ess_threshold=1.0), twist=TWIST),
    "twist guided": SMC(2, Systematic(ess_threshold=0.7), tiny.BOTH, twist=TWIST),
    "look-ahead": SMC(4, SSP(ess_threshold=1.0), twist=Lookahead(2, 2)),
    "look-ahead of one": SMC(2, Systematic(ess_threshold=1.0), twist=Lookahead(1, 1, 0.05)),
    "ramp": SMC(4, Killing(ess_threshold=1.0), annealing=Ramp(0.2, power=2.0)),
    "ramp guided": SMC(4, Systematic(ess_threshold=0.9), tiny.STEP, annealing=Ramp(0.0, 2)),
    "adaptive": SMC(4, Systematic(ess_threshold=1.0), annealing=AdaptiveTempering(0.7)),
    "entropic": SMC(4, Systematic(ess_threshold=1.0), annealing=Entropic(below=0.9, until=1.0)),
    "entropic entropy": SMC(
        2, Multinomial(ess_threshold=1.0), annealing=Entropic(EntropyRule(), 1.0, 1.0)
    ),
    "entropic base, twist": SMC(
        4, SSP(ess_threshold=1.0), twist=TWIST, annealing=Entropic(BaseRule(), 1.0, 1.0)
    ),
    "ramp, kernel": SMC(
        2,
        Systematic(ess_threshold=1.0),
        annealing=Ramp(0.3),
        kernel=inference.MH(ppl.select("token")),
    ),
    "soft": SMC(4, inference.Soft(Systematic(ess_threshold=1.0), share=0.6)),
    "stop gradient": SMC(4, inference.StopGradient(Systematic(ess_threshold=1.0))),
    "soft, adaptive": SMC(
        4, inference.Soft(Systematic(ess_threshold=0.9)), annealing=AdaptiveTempering(0.5)
    ),
}


@functools.cache
def posterior(harsh, reject):
    factors = tiny.HARSH if harsh else tiny.MILD
    return inference.exact.enumerate(tiny.text(factors, tiny.Ending(reject)))


QUICK = {"twist guided", "adaptive", "soft"}


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES],
)
@pytest.mark.parametrize("harsh", [False, True])
def test_properly_weighted(name, harsh):
    exact = posterior(harsh, harsh)
    measure = weighting(CASES[name], exact.target, exact)
    decide("proper weighting", measure, KEY, 2**13, "").check()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["twist guided", "look-ahead", "adaptive", "entropic", "soft"])
def test_a_conditional_run_keeps_the_posterior(name):
    """A posterior draw, retained, then a particle by weight: again a posterior draw."""
    exact, smc = posterior(False, False), CASES[name]
    tokens = np.asarray(exact.choices["token"]).dot([9, 3, 1]) + 27 * np.asarray(
        exact.choices["mood"]
    )
    runs = 2**13
    starts = jax.random.categorical(KEY, jnp.asarray(exact.log_probs, float), shape=(runs,))

    @jax.jit
    @jax.vmap
    def move(key, i):
        key_run, key_pick = jax.random.split(key)
        retained = jax.tree.map(lambda x: x[i], exact.choices)
        particles = smc.run_conditional(key_run, exact.target, retained)
        index = particles.pick(key_pick)
        return jax.tree.map(lambda x: x[index], particles.choices), jnp.exp(
            exact.log_evidence - particles.log_evidence
        )

    moved, inverse = move(jax.random.split(KEY, runs), starts)
    ends = np.asarray(moved["token"]).dot([9, 3, 1]) + 27 * np.asarray(moved["mood"])
    probs = np.exp(exact.log_probs)
    counts = np.array([np.sum(ends == code) for code in tokens])
    assert counts.sum() == runs
    z = (counts - runs * probs) / np.sqrt(runs * probs * (1 - probs))
    assert np.abs(z).max() < 4.2, z
    inverse = np.asarray(inverse, float)
    assert abs(inverse.mean() - 1) < 4 * inverse.std() / np.sqrt(runs)


@pytest.mark.slow
def test_the_heuristic_misses_the_target_and_reports_no_evidence():
    exact = inference.exact.enumerate(tiny.text(3 * tiny.MILD))
    smc = SMC(4, Systematic(ess_threshold=1.0), annealing=HeuristicEntropic(BaseRule(), 1.0, 1.0))
    assert np.isnan(smc.run(KEY, exact.target).log_evidence)
    keeps = SMC(4, Systematic(ess_threshold=1.0), annealing=Entropic(BaseRule(), 1.0, 1.0))

    def ratio(smc):
        """Mean over runs of sum w f over mean of sum w; the right value is the posterior's."""

        @jax.jit
        @jax.vmap
        def one(key):
            p = smc.run(key, exact.target)
            w = jnp.exp(p.log_weights)
            f = (p.choices["token"][:, 2] == 1).astype(w.dtype)
            return jnp.mean(w * f), jnp.mean(w)

        top, bottom = (np.asarray(x, float) for x in one(jax.random.split(KEY, 2**14)))
        value = top.mean() / bottom.mean()
        error = np.std(top - value * bottom) / np.sqrt(len(top)) / bottom.mean()
        return value, error

    truth = float(exact.expectation(lambda c: c["token"][2] == 1))
    value, error = ratio(keeps)
    assert abs(value - truth) < 4 * error
    value, error = ratio(smc)
    assert abs(value - truth) > 5 * error


def test_a_wrong_twist_is_named():
    target = tiny.text()
    nan = ppl.Twist(lambda state, t, *args: jnp.where(t == 1, jnp.nan, 0.0))
    status = SMC(4, twist=nan).run(KEY, target).status
    assert not status and "the twist" in status.message
    with pytest.raises(ppl.ProgramError, match="one float"):
        SMC(4, twist=ppl.Twist(lambda state, t, *args: jnp.zeros(2))).run(KEY, target)


def test_exponents_end_at_one():
    target = tiny.text()
    for annealing in (Ramp(0.1), AdaptiveTempering(0.8), Entropic()):
        exponents = np.asarray(SMC(16, annealing=annealing).run(KEY, target).exponents)
        assert exponents[-1] == 1 and np.all((exponents >= 0) & (exponents <= 1))
