"""Several proposals, weighed by their mixture: laws, densities, failures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import tiny_models as tiny

from feynkac import inference, ppl
from feynkac.inference.weighted import MultipleImportance, Stacked, log_densities
from feynkac.ppl import dist, laws
from feynkac.ppl.laws.proper_weighting import weighting
from feynkac.ppl.laws.result import decide
from feynkac.ppl.status import DEAD, NAN, UNSUPPORTED

KEY = jax.random.key(41)
TABLE = np.array([[0.7, 0.3, 0.0], [0.3, 0.5, 0.2]])


@ppl.program
def diagnosis(ctx, table):
    ill = ctx.sample("ill", dist.Bernoulli(probs=0.2))
    test = ctx.sample("test", ppl.Token(jnp.log(table[ill])))
    ctx.observe("fever", dist.Bernoulli(probs=jnp.where(ill == 1, 0.9, 0.1)), 1)
    ctx.factor("sure", jnp.array([-2.0, 0.0, 3.0])[test])


def _given(ctx, allowed, table):
    ctx.sample("test", ppl.Token(jnp.log(allowed)))


def _ill(ctx, probs, table):
    ctx.sample("ill", dist.Bernoulli(probs=probs))


# No one of them covers the target, all together do; one leaves a site to the model.
PART = Stacked(ppl.Proposal(init=_given), jnp.array([[1.0, 0.0, 0.0], [0.0, 0.9, 0.1]]))
ILL = ppl.bind(ppl.Proposal(init=_ill), 0.7)
TARGET = ppl.Target(diagnosis, (jnp.asarray(TABLE, float),))


def algorithm():
    return MultipleImportance((1, 2), (PART, ILL))


def test_program():
    exact = inference.exact.enumerate(TARGET)
    decide("", weighting(algorithm(), TARGET, exact), KEY, 2**13, "").check()


def test_densities_by_hand():
    proposals = (*algorithm().proposals, None)
    choices = {"ill": jnp.int32(1), "test": jnp.int32(2)}
    log_gamma, log_q = jax.jit(lambda c: log_densities(TARGET, proposals, c))(choices)
    want = [0.2 * 0.0, 0.2 * 0.1, 0.7 * TABLE[1, 2], 0.2 * TABLE[1, 2]]
    np.testing.assert_allclose(np.exp(log_q[-1]), want, rtol=1e-5)
    np.testing.assert_allclose(log_gamma[-1], np.log(0.2 * 0.2 * 0.9) + 3, rtol=1e-5)
    # The weight of a draw is gamma over the mixture, by the numbers of particles.
    p = algorithm().run(KEY, TARGET)
    assert p.log_weights.shape == (4,)
    p0, table = np.array([0.8, 0.2]), np.array([[1, 0, 0], [0, 0.9, 0.1]])
    for i in range(4):
        ill, test = int(p.choices["ill"][i]), int(p.choices["test"][i])
        gamma = p0[ill] * TABLE[ill, test] * (0.1, 0.9)[ill] * np.exp([-2, 0, 3][test])
        q = (p0[ill] * table[:, test].sum() + 2 * (0.3, 0.7)[ill] * TABLE[ill, test]) / 4
        np.testing.assert_allclose(np.exp(p.log_weights[i]), gamma / q, rtol=1e-4)


@pytest.mark.slow
def test_state_space():
    """Over whole trajectories, with early ends, impossible tokens and large factors."""
    mixed = MultipleImportance((2, 1, 1), (tiny.BOTH, None, tiny.STEP))
    for factors, reject in ((tiny.HARSH, False), (tiny.MILD, True)):
        target = tiny.text(factors, tiny.Ending(reject))
        exact = inference.exact.enumerate(target)
        decide("", weighting(mixed, target, exact), KEY, 2**13, "").check()
    some = ppl.Partial(jnp.array([1, 0, 2]), jnp.array([False, False, True]))
    init = MultipleImportance(1, (tiny.INIT, None))
    laws.proper_weighting(KEY, init, tiny.text(constraints={"token": some}), runs=2**13).check()


@pytest.mark.slow
def test_nested_densities():
    laws.nested_density(KEY, algorithm(), TARGET, runs=2**14).check()
    two = MultipleImportance(1, (tiny.BOTH, None))
    laws.nested_density(KEY, two, tiny.text(length=2), runs=2**14).check()


@pytest.mark.slow
def test_histories_and_failures():
    p = MultipleImportance(2, (tiny.BOTH, None)).run(KEY, tiny.text())
    assert p.ess_history.shape == p.log_evidence_history.shape == (tiny.LENGTH + 1,)
    assert p.log_evidence_history[-1] == p.log_evidence and p.ess_history[-1] == p.ess
    np.testing.assert_array_equal(p.unique_ancestors(), np.full(tiny.LENGTH + 1, 4))
    # One component may die; all may not.
    dead = Stacked(ppl.Proposal(init=_given), jnp.zeros((1, 3)))
    half = MultipleImportance(4, (dead, None)).run(KEY, TARGET)
    assert half.status and np.isneginf(half.log_weights[:4]).all()
    assert np.isfinite(half.log_weights[4:]).any()
    nothing = ppl.Target(diagnosis, (jnp.full((2, 3), 0.0),))
    none = MultipleImportance(4, (dead, None)).run(KEY, nothing)
    assert int(none.status.code) == DEAD and np.isneginf(none.log_evidence)
    impossible = {"ill": jnp.int32(0), "test": jnp.int32(2)}
    kept = algorithm().run_conditional(KEY, TARGET, impossible)
    assert int(kept.status.code) == UNSUPPORTED
    broken = MultipleImportance(2, (ppl.bind(ppl.Proposal(init=_ill), jnp.nan), None))
    assert int(broken.run(KEY, TARGET).status.code) == NAN
    with pytest.raises(inference.InferenceError, match="a log density is NaN"):
        broken.run(KEY, TARGET, throw=True)


def test_errors_say_what_to_do():
    with pytest.raises(ppl.ProgramError, match="leave them out"):
        algorithm().run(KEY, ppl.Target(diagnosis, TARGET.args, {"test": 1}))
    with pytest.raises(ValueError, match="one positive number, or one for each"):
        MultipleImportance((1, 2, 3), (PART, ILL))
    with pytest.raises(ValueError, match="at least one proposal"):
        MultipleImportance(1, ())
    with pytest.raises(ValueError, match="leading axis"):
        Stacked(ppl.Proposal(init=_given), jnp.zeros(2), jnp.zeros(3))
    other = ppl.bind(ppl.Proposal(init=lambda ctx, p, table: ctx.sample("z", dist.Normal(p, 1))), 0)
    with pytest.raises(ppl.ProgramError, match="'z'"):
        MultipleImportance(1, (other, None)).run(KEY, TARGET)
