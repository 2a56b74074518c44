"""PIMH, PMMH and SMC^2 on a model whose parameter is enumerable: the mood of `tiny_models`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import tiny_models as tiny

from feynkac import inference, ppl
from feynkac.inference import SMC, Systematic
from feynkac.inference.pmcmc import PIMH, PMMH, SMC2, GrowingSMC2, Parametric
from feynkac.ppl import dist
from feynkac.ppl.laws.invariance import OnTraces, moving
from feynkac.ppl.laws.proper_weighting import weighting
from feynkac.ppl.laws.result import decide

KEY = jax.random.key(73)


@ppl.program
def mood(ctx):
    return ctx.sample("mood", dist.Bernoulli(probs=0.4))


def _init(ctx, mood, table, factors):
    ctx.factor("first", jnp.where(mood == 1, 0.3, -0.2))
    return {"mood": mood, "last": jnp.zeros((), jnp.int32), "ended": jnp.zeros((), bool)}


def _step(ctx, state, t, mood, table, factors):
    return tiny._step(ctx, state, t, table, factors)


def parametric(target: ppl.Target) -> Parametric:
    """The same law, its mood a parameter."""
    model = ppl.StateSpace(_init, _step, tiny.LENGTH, tiny._ended, target.model.at_length)
    return Parametric(mood, model, target.args)


def _flip(ctx, params):
    ctx.sample("mood", dist.Bernoulli(probs=jnp.where(params["mood"] == 1, 0.3, 0.8)))


@pytest.fixture(scope="module")
def posterior():
    return inference.exact.enumerate(tiny.text(tiny.MILD, tiny.Ending(True)))


class Started(eqx.Module):
    """One move of PMMH from a posterior draw."""

    pmmh: PMMH
    model: Parametric

    def __call__(self, key, choices):
        draws = self.pmmh.run(key, self.model, 1, choices)
        return jax.tree.map(lambda x: x[0], draws.choices)


@pytest.mark.parametrize("proposal", [_flip, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_pmmh(proposal, posterior):
    smc = SMC(2, tiny.resampler(Systematic, 0.8))
    kernel = Started(PMMH(smc, proposal), parametric(posterior.target))
    decide("invariance", moving(kernel, posterior), KEY, 2**14, "").check()


@pytest.mark.slow
def test_pimh(posterior):
    """As a kernel, and its chain against the posterior (a fresh run from time to time)."""
    pimh = PIMH(SMC(2, tiny.resampler(inference.SSP, 0.8)))
    decide(
        "invariance", moving(OnTraces(pimh, posterior.target), posterior), KEY, 2**14, ""
    ).check()

    draws = jax.jit(jax.vmap(lambda k: pimh.run(k, posterior.target, 40)))(
        jax.random.split(KEY, 2**9)
    )
    late = np.asarray(draws.choices["mood"])[:, 10:].mean(1)
    want = posterior.expectation(lambda c: c["mood"])
    assert abs(late.mean() - want) < 4 * late.std(ddof=1) / np.sqrt(len(late))
    assert 0 < np.asarray(draws.accepted).mean() < 1


class Joint(eqx.Module):
    """SMC^2 as an algorithm on the joint law."""

    smc2: SMC2
    model: Parametric

    def run(self, key, target):
        return self.smc2.run(key, self.model)


@pytest.mark.slow
@pytest.mark.parametrize(("m", "n", "factors"), [(3, 2, tiny.MILD), (4, 2, tiny.HARSH)])
def test_smc2_is_properly_weighted(m, n, factors):
    exact = inference.exact.enumerate(tiny.text(factors, tiny.Ending(True)))
    smc = SMC(n, tiny.resampler(Systematic, 1.0))
    smc2 = SMC2(m, PMMH(smc, _flip), Systematic(ess_threshold=0.9))
    joint = Joint(smc2, parametric(exact.target))
    decide("proper weighting", weighting(joint, exact.target, exact), KEY, 2**13, "").check()


@pytest.mark.slow
def test_moves_where_resampled_are_biased():
    """What every=None says of itself: the decision depends on what is moved."""
    exact = inference.exact.enumerate(tiny.text(tiny.MILD, tiny.Ending(True)))
    smc = SMC(2, tiny.resampler(Systematic, 1.0))
    smc2 = SMC2(3, PMMH(smc, _flip), Systematic(ess_threshold=0.9), every=None)
    joint = Joint(smc2, parametric(exact.target))
    assert not decide("", weighting(joint, exact.target, exact), KEY, 2**13, "")


class Growing(Joint):
    """With filters that double, at times that are given."""

    conditional: bool = eqx.field(static=True, default=False)

    def run(self, key, target):
        grown = GrowingSMC2(self.smc2, conditional=self.conditional, doublings=(0, 1))
        return grown.run(key, self.model).particles


@pytest.mark.slow
@pytest.mark.parametrize("conditional", [False, True])
def test_exchange_is_properly_weighted(conditional):
    """From one particle, with which the conditional run is all that keeps the path."""
    exact = inference.exact.enumerate(tiny.text(tiny.MILD, tiny.Ending(True)))
    smc2 = SMC2(3, PMMH(SMC(1, Systematic(ess_threshold=1.0)), _flip), Systematic(), every=2)
    joint = Growing(smc2, parametric(exact.target), conditional)
    decide("", weighting(joint, exact.target, exact), KEY, 2**13, "").check()


@pytest.mark.slow
def test_filters_double_where_nothing_moves():
    model = parametric(tiny.text(tiny.MILD))
    smc2 = SMC2(4, PMMH(SMC(1), _flip))
    grown = GrowingSMC2(smc2, least_acceptance=1.1, most_particles=2).run(KEY, model)
    assert grown.n_particles == (1, 2, 2) and grown.doublings == (0,)
    assert np.isfinite(grown.particles.log_evidence)
    with pytest.raises(ppl.ProgramError, match="on the host"):
        jax.jit(lambda key: GrowingSMC2(smc2).run(key, model))(KEY)
    with pytest.raises(ValueError, match="0 to 1"):
        GrowingSMC2(smc2, doublings=[2]).run(KEY, model)


def test_what_is_refused():
    model = parametric(tiny.text())
    with pytest.raises(ppl.ProgramError, match="may draw only free sites"):
        PMMH(SMC(2), lambda ctx, params: ctx.sample("other", dist.Normal(0.0, 1.0))).propose(
            KEY, model, {"mood": jnp.int32(0)}
        )
    with pytest.raises(ppl.ProgramError, match="different names"):
        model.joined({"mood": 0}, {"mood": 1})
    with pytest.raises(ValueError, match="at least one"):
        SMC2(0, PMMH(SMC(2)))
