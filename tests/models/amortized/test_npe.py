"""Neural posterior estimation against conjugate posteriors, whole and in part, and its errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from feynkac import inference, ppl
from feynkac.models.amortized.encoders import plain_encoder
from feynkac.models.amortized.flows import spline_flow
from feynkac.models.amortized.npe import npe
from feynkac.models.amortized.simulations import simulated

KEY = jax.random.key(0)
SMALL = {"head": functools.partial(spline_flow, layers=2, width=16, bins=4), "progress": False}
PLAIN = functools.partial(plain_encoder, width=16, outputs=8, depth=1)


@ppl.program
def conjugate(ctx):
    """m ~ N(0, 1) seen with variances 1 and 1/4; u is seen by nothing."""
    m = ctx.sample("m", dist.Normal(0.0, 1.0))
    ctx.sample("u", dist.Uniform(-1.0, 2.0))
    ctx.sample("a", dist.Normal(m, 1.0))
    ctx.sample("b", dist.Normal(m, 0.5))


@pytest.fixture(scope="module")
def posterior():
    return npe(
        KEY,
        conjugate,
        ["a", "b"],
        simulations=6000,
        masked=True,
        encoder=PLAIN,
        steps=500,
        batch=128,
        learning_rate=5e-3,
        **SMALL,
    )


def exact(a, b, with_a, with_b):
    precision = 1 + with_a + 4 * with_b
    return (with_a * a + 4 * with_b * b) / precision, 1 / np.sqrt(precision)


def test_any_part_of_the_data_conditions(posterior):
    """The mean of log p - log q over fresh simulations is the expected KL: small, not below 0."""
    trace = simulated(jax.random.key(5), conjugate, (), 800)
    m, a, b = (np.asarray(trace[name], np.float64) for name in "mab")

    @jax.jit
    def scores(trace, with_a, with_b):
        def one(x):
            data = {"a": ppl.Partial(x["a"], with_a), "b": ppl.Partial(x["b"], with_b)}
            return posterior.at(data).assess({"m": x["m"], "u": x["u"]})[0]

        return jax.vmap(one)(trace)

    for with_a, with_b in ((1, 1), (1, 0), (0, 1), (0, 0)):
        found = np.asarray(scores(trace, jnp.asarray(with_a > 0), jnp.asarray(with_b > 0)))
        mean, sd = exact(a, b, with_a, with_b)
        log_p = -0.5 * ((m - mean) / sd) ** 2 - np.log(sd * np.sqrt(2 * np.pi)) - np.log(3.0)
        gap = log_p - found
        error = gap.std() / np.sqrt(len(gap))
        assert -4 * error < gap.mean() < 0.05 + 4 * error, (with_a, with_b, gap.mean(), error)
    assert np.isfinite(posterior.log_score) and posterior.status


def test_draws_agree_with_the_closed_form_and_stay_in_the_support(posterior):
    data = {"a": jnp.asarray(1.2)}
    draws = posterior.sample(KEY, data, 2000)
    assert ((draws["u"] > -1) & (draws["u"] < 2)).all()
    mean, sd = exact(1.2, 0.0, 1, 0)
    # Within sampling error and a bias of a tenth of a standard deviation.
    assert abs(draws["m"].mean() - mean) < 4 * sd / np.sqrt(2000) + 0.1 * sd
    assert abs(draws["m"].std() / sd - 1) < 0.15
    few = jax.tree.map(lambda x: x[:3], draws)
    guide = posterior.at(data)
    apart = [guide.assess(jax.tree.map(lambda x, i=i: x[i], few))[0] for i in range(3)]
    np.testing.assert_allclose(posterior.log_prob(data, few), jnp.stack(apart), rtol=1e-5)


def test_it_proposes_and_knows_its_range(posterior):
    data = {"a": jnp.asarray(1.0), "b": jnp.asarray(0.3)}
    target = ppl.Target(conjugate, (), data)
    run = inference.Importance(500, posterior.proposal(data)).run(KEY, target)
    covariance = np.array([[2.0, 1.0], [1.0, 1.25]])
    y = np.array([1.0, 0.3])
    log_z = -0.5 * (y @ np.linalg.solve(covariance, y)) - 0.5 * np.log(
        np.linalg.det(2 * np.pi * covariance)
    )
    error = np.sqrt((500 / run.ess - 1) / 500)
    assert abs(run.log_evidence - log_z) < 4 * error + 1e-4
    assert run.ess > 0.7 * 500
    assert posterior.inside(data)
    assert not posterior.inside({"a": jnp.asarray(40.0)})
    low, high = posterior.validity["a"]
    assert -8 < low < -2 and 2 < high < 8


@ppl.program
def _point(ctx, m):
    ctx.sample("y", dist.Normal(m, 1.0))


@ppl.program
def failing(ctx):
    m = ctx.sample("m", dist.Normal(0.0, 2.0))
    ctx.sample("y", dist.Normal(jnp.where(m > 1, jnp.nan, m), 1.0))


def test_errors_say_what_to_do(posterior):
    with pytest.raises(ppl.ProgramError, match="not finite: leave such instances out"):
        posterior.at({"a": jnp.asarray(jnp.nan)})
    with pytest.raises(ppl.ProgramError, match=r"\['c'\] were not observed in training"):
        posterior.at({"c": jnp.asarray(0.0)})
    with pytest.raises(ppl.ProgramError, match=r"has shape \(3,\)"):
        posterior.at({"a": jnp.zeros(3)})
    with pytest.raises(ppl.ProgramError, match="different sites among the"):
        npe(KEY, conjugate, ["nothing"], simulations=10)
    with pytest.raises(ppl.ProgramError, match="simulations have numbers at 'y' that are not fin"):
        npe(KEY, failing, ["y"], simulations=50)
    with pytest.raises(ValueError, match="a checkpoint is for fresh draws"):
        npe(KEY, conjugate, ["a"], latents=["m"], simulations=50, checkpoint="x", **SMALL)


@ppl.program
def normal_points(ctx):
    m = ctx.sample("m", dist.Normal(0.0, 1.0))
    k = ctx.sample("k", dist.Bernoulli(0.5))
    ctx.call("points", ppl.vmap(_point), jnp.full(4, m + 2.0 * k.astype(float)))


def test_discrete_latents_are_refused_or_integrated_out():
    with pytest.raises(ppl.ProgramError, match=r"\['k'\] are discrete"):
        npe(KEY, normal_points, ["points"], simulations=50)
