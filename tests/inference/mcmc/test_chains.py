"""Chains: starts, diagnostics, compositions, and what they say when there is no start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compile_count import compiles
from oracles import tiny_models as tiny

from feynkac import inference, ppl
from feynkac.inference import MH, Repeat, mcmc
from feynkac.inference.chains import MCMC
from feynkac.ppl import dist
from feynkac.ppl.laws.invariance import OnTraces, moving
from feynkac.ppl.laws.result import decide

KEY = jax.random.key(67)


@ppl.program
def hard(ctx, gap):
    """Possible only where x is far from zero, on either side."""
    x = ctx.sample("x", dist.Normal(0.0, 1.0))
    ctx.call("in", inner, x)
    ctx.factor("gap", jnp.where(jnp.abs(x) > gap, 0.0, -jnp.inf))


@ppl.program
def inner(ctx, x):
    ctx.sample("k", dist.Bernoulli(logits=x))


def beyond(gap):
    return ppl.Target(hard, (jnp.asarray(gap, float),))


STUCK = mcmc.Metropolis(lambda ctx, choices, gap: ctx.sample("x", dist.Normal(choices["x"], 0.1)))
RUN = MCMC(STUCK, n_chains=6, n_samples=40, burn_in=3, thin=2)


def test_starts_are_possible_and_apart_and_diagnostics_see_it():
    chains = RUN.run(KEY, beyond(1.0))
    x = np.asarray(chains.choices["x"])
    assert chains.status and x.shape == (6, 40) and (np.abs(x) > 1).all()
    assert np.asarray(chains.choices["in"]["k"]).shape == (6, 40)
    assert len(np.unique(np.sign(x[:, 0]))) == 2  # both sides are found, none is left
    r_hat, bulk, tail = chains.r_hat(), chains.ess_bulk(), chains.ess_tail()
    assert set(r_hat) == {"x", "in/k"} and r_hat["x"] > 1.3
    assert 0 < bulk["x"] < 60 and 0 < tail["x"] < 240
    assert np.isfinite(np.asarray(chains.log_density)).all()
    assert 0 < chains.acceptance.mean() <= 1
    mean = chains.expectation(lambda c: {"x": c["x"], "k": c["in"]["k"]})
    np.testing.assert_allclose(mean["x"], x.mean(), rtol=1e-5)
    assert "chains=6, draws=40" in repr(chains)

    import arviz

    data = chains.to_arviz()
    assert data["posterior"]["in/k"].shape == (6, 40)
    np.testing.assert_allclose(arviz.rhat(data)["x"], r_hat["x"], rtol=0.02)
    assert data["sample_stats"]["lp"].shape == (6, 40)
    assert len(chains.plot().axes) == 4
    with pytest.raises(ValueError, match="at least 4 draws"):
        jax.tree.map(lambda a: a[:, :3] if a.ndim > 1 else a, chains).r_hat()


def test_no_start_is_a_status():
    chains = RUN.run(KEY, beyond(50.0))
    assert not chains.status and (np.asarray(chains.acceptance) >= 0).all()
    assert "6 of 6 chains (the first is 0) found no start" in chains.status.message
    with pytest.raises(inference.InferenceError, match="init=choices"):
        RUN.run(KEY, beyond(50.0), throw=True)
    assert len(set(np.asarray(chains.choices["x"])[0])) == 1


def test_new_numbers_compile_nothing():
    target = beyond(1.0)
    RUN.run(KEY, target)
    key, target = jax.random.key(1), beyond(1.5)
    with compiles() as c:
        RUN.run(key, target)
    assert c.count == 0, c.names


def test_arguments():
    with pytest.raises(ValueError, match="n_chains >= 1, got 0"):
        MCMC(STUCK, n_chains=0)
    with pytest.raises(ValueError, match="one start a chain"):
        MCMC(STUCK, n_chains=3, init={"x": jnp.zeros(2)})
    with pytest.raises(ValueError, match="list of at least one kernel"):
        mcmc.Sequence([])
    with pytest.raises(ValueError, match="2 probabilities"):
        mcmc.Mixture([STUCK, STUCK], [1.0])


@pytest.mark.slow
def test_a_run_goes_on_from_its_last_draws():
    first = RUN.run(KEY, beyond(1.0))
    again = MCMC(STUCK, 6, 4, 0, init=first.last()).run(KEY, beyond(1.0))
    assert (np.abs(np.asarray(again.choices["x"][:, 0] - first.choices["x"][:, -1])) < 0.7).all()


@pytest.mark.slow
def test_compositions_leave_the_target_invariant():
    exact = inference.exact.enumerate(tiny.text(tiny.MILD, tiny.Ending(True)))
    mood = mcmc.Gibbs(ppl.select("mood"))
    kernel = mcmc.Mixture(
        [mcmc.Sequence([mood, mcmc.Suffix()]), Repeat(MH(ppl.select("token")), 2), mood],
        [0.5, 0.3, 0.2],
    )
    measure = moving(OnTraces(kernel, exact.target), exact, None, 2)
    decide("compositions", measure, KEY, 2**15, "").check()
