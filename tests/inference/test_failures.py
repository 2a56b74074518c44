"""Every failure is a status with its step and site; weights stay what they were."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import tiny_models as tiny

from feynkac import inference, ppl
from feynkac.inference import SMC
from feynkac.ppl import dist
from feynkac.ppl.status import DEAD, NAN, OK

KEY = jax.random.key(5)
LENGTH, N = 3, 64


def _init(ctx, first, factors, scales):
    ctx.factor("first", first)
    return jnp.zeros((), bool)


def _step(ctx, state, t, first, factors, scales):
    token = ctx.sample("token", ppl.Token(jnp.zeros(4)))
    ctx.sample("noise", dist.Normal(0.0, scales[t, token]))
    ctx.factor("fit", factors[t, token])
    return token == 3


GOOD = (jnp.zeros(()), jnp.zeros((LENGTH, 4)), jnp.ones((LENGTH, 4)))
BAD = jnp.array([0, 1, 1, 1]) == 0  # what goes wrong goes wrong for token 0


@functools.cache
def smc():
    return SMC(N, inference.Systematic(ess_threshold=1.0))


def run(first=0.0, factors=GOOD[1], scales=GOOD[2], reject=False):
    model = ppl.StateSpace(_init, _step, LENGTH, None, tiny.Ending(reject))
    args = (jnp.asarray(first, float), jnp.asarray(factors), jnp.asarray(scales))
    return smc().run(KEY, ppl.Target(model, args))


def check_dead(p, step):
    assert (int(p.status.code), int(p.status.step)) == (DEAD, step)
    assert np.isneginf(p.log_evidence) and np.isneginf(p.log_weights).all() and p.ess == 0
    assert not np.isnan(p.log_evidence_history).any() and not np.isnan(p.ess_history).any()
    np.testing.assert_array_equal(np.isneginf(p.log_evidence_history), np.arange(-1, 3) >= step)
    # No resampling of the dead: never a row of zeros.
    after = np.asarray(p.ancestors)[max(step + 1, 0) :]
    np.testing.assert_array_equal(after, np.broadcast_to(np.arange(N), after.shape))
    assert np.isnan(p.expectation(lambda c: c["token"])).all()


@pytest.mark.x64
def test_dead():
    assert run().status and int(run().status.code) == OK
    check_dead(run(first=-jnp.inf), -1)
    for t in range(LENGTH):
        check_dead(run(factors=GOOD[1].at[t].set(-jnp.inf)), t)
    # Nothing is done, since there is no `done`, so at full length all is rejected.
    p = run(reject=True)
    assert (int(p.status.code), int(p.status.step)) == (DEAD, LENGTH)
    assert np.isneginf(p.log_evidence) and np.isneginf(p.log_weights).all()
    with pytest.raises(inference.InferenceError, match="died at step 1.*use more particles"):
        p = run(factors=GOOD[1].at[1].set(-jnp.inf))
        p.status.throw()


def test_some_dead():
    p = run(factors=jnp.where(BAD, -jnp.inf, GOOD[1]))
    assert int(p.status.code) == OK
    # Selection never picks what is dead; the last step's dead are there, with weight zero.
    tokens = np.asarray(p.choices["token"])
    assert (tokens[:, :-1] != 0).all() and (tokens[:, -1] == 0).any()
    np.testing.assert_array_equal(np.isneginf(p.log_weights), tokens[:, -1] == 0)


def test_nan_at_a_site():
    scales = GOOD[2].at[1].set(jnp.where(BAD, jnp.nan, 1.0))
    p = run(scales=scales)
    assert (int(p.status.code), int(p.status.step)) == (NAN, 1)
    assert np.isnan(p.log_evidence) and "NaN at step 1, first at 'noise'" in p.status.message
    # What was NaN is not selected; the others go on.
    assert np.isfinite(p.log_weights).sum() > N // 2
    with pytest.raises(inference.InferenceError, match="'noise'.*negative scale"):
        p.status.throw()


def test_nan_at_a_factor_and_at_init():
    p = run(factors=GOOD[1].at[2].set(jnp.where(BAD, jnp.nan, 0.0)))
    assert (int(p.status.code), int(p.status.step)) == (NAN, 2) and np.isnan(p.log_evidence)
    assert "'an observe or factor'" in p.status.message
    p = run(first=jnp.nan)
    assert (int(p.status.code), int(p.status.step)) == (NAN, -1)
    assert "step init" in p.status.message


def test_nan_that_follows_from_the_impossible():
    """A particle of weight zero stays so: what it does afterwards is no failure."""
    factors = jnp.full((LENGTH, 4), -jnp.inf)
    p = run(factors=factors.at[1].set(jnp.nan), scales=GOOD[2].at[2].set(jnp.nan))
    check_dead(p, 0)


def test_impossible_constraint():
    target = tiny.text(constraints={"token": jnp.array([2, 2, 0])})
    p = SMC(4).run(KEY, target)
    assert (int(p.status.code), int(p.status.step)) == (DEAD, 1)
    assert np.isneginf(inference.exact.enumerate(target).log_evidence)
    with pytest.raises(inference.InferenceError, match="constraint can be met"):
        SMC(4).run(KEY, target, throw=True)


def _masked(ctx, allowed):
    ctx.sample("token", ppl.Token(jnp.zeros(3), mask=allowed))


def test_empty_distributions_have_weight_zero():
    """All masked: in the model, and in a proposal for a model that is not."""
    none = jnp.zeros(3, bool)
    for proposal, allowed in ((None, none), (ppl.Proposal(init=_masked_proposal), ~none)):
        p = inference.Importance(4, proposal).run(KEY, ppl.Target(ppl.program(_masked), (allowed,)))
        assert (int(p.status.code), int(p.status.step)) == (DEAD, -1)
        assert np.isneginf(p.log_weights).all() and np.isneginf(p.log_evidence)


def _masked_proposal(ctx, allowed):
    ctx.sample("token", ppl.Token(jnp.zeros(3), mask=~allowed))
