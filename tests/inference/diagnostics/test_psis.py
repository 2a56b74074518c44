"""K-hat on weights of known tail, and what is said where there is none to fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac import inference
from feynkac.inference import diagnostics
from feynkac.inference.diagnostics import Khat, khat, psis
from feynkac.ppl import dist, program


@pytest.mark.parametrize("k", [0.2, 0.6, 1.2])
def test_pareto_tails(k):
    """Weights u^-k have Pareto shape k; the fit's error is about (1 + k) / sqrt(tail)."""
    u = np.random.default_rng(1).uniform(size=(20, 4000))
    _, ks = psis(-k * np.log(u))
    # The prior of the fit pulls towards 0.5 with the strength of ten draws.
    tail = np.ceil(3 * np.sqrt(4000))
    want = (tail * k + 5) / (tail + 10)
    error = ks.std(ddof=1) / np.sqrt(20)
    assert abs(ks.mean() - want) < 4 * error + 0.02
    assert ks.shape == (20,)


def test_smoothing_keeps_the_scale_and_the_order():
    rng = np.random.default_rng(2)
    log_w = 0.8 * rng.exponential(size=1000) - 700.0
    smoothed, k = psis(log_w)
    assert 0.5 < k < 1.1 and smoothed.max() <= log_w.max()
    np.testing.assert_array_equal(np.argsort(smoothed, kind="stable"), np.argsort(log_w))
    body = log_w < np.quantile(log_w, 0.85)
    np.testing.assert_allclose(smoothed[body], log_w[body])
    # With weights of zero among them the evidence has the same offset.
    with_zeros = np.append(log_w, np.full(200, -np.inf))
    again, _ = psis(with_zeros)
    assert np.isneginf(again[-200:]).all()
    evidence = np.logaddexp.reduce(again) - np.log(1200)
    assert abs(evidence - (np.logaddexp.reduce(with_zeros) - np.log(1200))) < 0.1


def test_nothing_to_fit():
    same = np.zeros(100)
    assert psis(same)[1] == -np.inf and Khat(-np.inf, 100).ok
    assert psis(np.arange(10.0))[1] == np.inf and "at least 25" in Khat(np.inf, 10).advice
    for bad in (np.full(50, -np.inf), np.append(same, np.nan)):
        smoothed, k = psis(bad)
        assert np.isnan(k) and "status" in Khat(float(k), 50).advice and not Khat(float(k), 50)
        np.testing.assert_array_equal(smoothed, bad)
    with pytest.raises(ValueError, match="last axis"):
        psis(1.0)


def test_thresholds_and_advice():
    assert Khat(0.45, 100).threshold == 0.5 and Khat(0.45, 100).ok
    assert Khat(0.6, 10**6).threshold == 0.7
    assert not Khat(0.6, 100) and "about 317 draws" in Khat(0.6, 100).advice
    assert "PopulationMonteCarlo" in Khat(0.9, 10**6).advice
    assert "no finite mean" in Khat(1.3, 10**6).advice and "1.30" in repr(Khat(1.3, 100))


@program
def wide(ctx, scale):
    x = ctx.sample("x", dist.Normal(0.0, scale))
    ctx.factor("target", dist.Normal(0.0, 1.0).log_prob(x) - dist.Normal(0.0, scale).log_prob(x))


def test_of_a_population():
    """A proposal wider than the target is good, one narrower is not: k = 1 - scale^2."""
    run = jax.jit(lambda s: inference.Importance(4000).run(jax.random.key(0), _target(s)))
    good, bad = khat(run(jnp.asarray(2.0))), khat(run(jnp.asarray(0.4)))
    assert good.ok and good.k < 0.3 and not bad.ok and bad.k > 0.7
    with pytest.raises(ValueError, match="pick one"):
        khat(jax.tree.map(lambda x: x[None], run(jnp.asarray(2.0))))


def _target(scale):
    from feynkac.ppl import Target

    return Target(wide, (scale,))


def test_chains():
    """Mixed chains have R-hat 1; ESS is that of an autoregression; shapes follow the choices."""
    rng = np.random.default_rng(3)
    noise = rng.normal(size=(4, 2000, 2))
    walk = np.zeros_like(noise)
    for t in range(1, 2000):
        walk[:, t] = 0.8 * walk[:, t - 1] + 0.6 * noise[:, t]
    apart = noise + np.arange(4)[:, None, None]
    draws = {"a": noise, "b": {"walk": walk, "apart": apart}, "same": np.ones((4, 2000))}
    r, n = diagnostics.rhat(draws), diagnostics.ess(draws)
    assert r["a"].shape == (2,) and (r["a"] < 1.01).all() and (r["b"]["apart"] > 1.3).all()
    assert np.isnan(r["same"]) and n["same"].shape == ()
    np.testing.assert_allclose(n["b"]["walk"], 8000 * 0.2 / 1.8, rtol=0.25)
    np.testing.assert_allclose(diagnostics.mcse(noise), 1 / np.sqrt(8000), rtol=0.1)
    assert (diagnostics.ess_tail(draws)["a"] > 4000).all()
    with pytest.raises(ValueError, match=r"draws\[None\]"):
        diagnostics.rhat(np.zeros(10))
