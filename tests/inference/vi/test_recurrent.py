"""Guides by steps on a linear-Gaussian model, whose evidence is exact; weighted KL terms."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

from feynkac import inference, ppl
from feynkac.inference.vi import value_and_grad
from feynkac.inference.vi.fit import fit
from feynkac.inference.vi.recurrent import stepwise_elbo, stepwise_guide, weighted_elbo
from feynkac.models.finite import LinearGaussian

KEY = jax.random.key(0)
LENGTH = 4
YS = jnp.asarray([0.4, 1.3, -0.2, 0.9])
MODEL = LinearGaussian([0.2], [[1.5]], [[0.8]], [[0.7]], [[1.0]], [[0.5]])
TARGET = ppl.Target(MODEL.state_space(LENGTH), (YS[:, None],))
LOG_Z = float(MODEL.log_evidence(YS[:, None]))


class Affine(eqx.Module):
    """x_t ~ N(a_t x_{t-1} + b_t, exp(s_t)^2): the posterior is of this form."""

    a: jax.Array
    b: jax.Array
    s: jax.Array

    @staticmethod
    def start():
        return Affine(*(jnp.zeros(LENGTH) for _ in range(3)))


def _propose(ctx, x, t, q, *args):
    ctx.sample("x", dist.Normal(q.a[t] * x + q.b[t], jnp.exp(q.s[t])).to_event(1))


def proposal(q):
    return ppl.bind(ppl.Proposal(_propose), q)


def elbo_of_filtering():
    """E_q log p(x, y) / q(x) of the guide p(x_t | x_{t-1}, y_t): sums of E log p(y_t | x_{t-1})."""
    mean, var, total = 0.0, 0.0, 0.0
    for t, y in enumerate(np.asarray(YS, float)):
        m = 0.2 if t == 0 else 0.8 * mean
        spread = 0.0 if t == 0 else 0.64 * var
        q = 1.5 if t == 0 else 0.7
        total += -0.5 * (np.log(2 * np.pi * (q + 0.5)) + ((y - m) ** 2 + spread) / (q + 0.5))
        gain = q / (q + 0.5)
        mean, var = m + gain * (y - m), (1 - gain) ** 2 * spread + (1 - gain) * q
    return total


def test_filtering_guide_has_its_closed_form_elbo():
    guide = stepwise_guide(TARGET, MODEL.optimal_proposal())

    @jax.jit
    @jax.vmap
    def draw(key):
        trace = guide.simulate(key)
        return TARGET.log_density(trace.choices) - trace.score

    values = np.asarray(draw(jax.random.split(KEY, 4000)))
    exact = elbo_of_filtering()
    assert abs(values.mean() - exact) < 4 * values.std() / np.sqrt(len(values))
    assert exact < LOG_Z - 0.1


@pytest.mark.slow
def test_smoothing_guide_learns_the_posterior():
    """The same proposal then filters with equal weights, each the evidence."""
    found = fit(
        KEY, stepwise_elbo, proposal(Affine.start()), (TARGET,), steps=1000, every=500, samples=8,
        optimizer=optax.adam(optax.exponential_decay(0.1, 100, 0.5)), progress=False,
    )  # fmt: skip
    assert abs(found.values[-50:].mean() - LOG_Z) < 5e-3
    assert found.values[:10].mean() < LOG_Z - 0.5
    for algorithm in (
        inference.Importance(64, found.params),
        inference.SMC(64, None, found.params),
    ):
        run = algorithm.run(KEY, TARGET)
        assert abs(run.log_evidence - LOG_Z) < 2e-2 and run.ess > 63


@pytest.fixture(scope="module")
def bounds():
    q = proposal(Affine(jnp.full(LENGTH, 0.4), 0.3 * YS, jnp.full(LENGTH, -0.2)))

    @jax.jit
    def at(weight):
        objective = weighted_elbo(weight)
        keys = jax.random.split(KEY, 500)
        return jax.vmap(lambda k: value_and_grad(objective)(k, q, TARGET)[0])(keys)

    return q, at


@pytest.mark.slow
def test_weights_scale_the_kl_terms(bounds):
    """Draw by draw: the difference to the ELBO is the sum of (weight - 1) log q_t / p_t."""
    q, at = bounds
    ones, weights = jnp.ones(LENGTH), jnp.asarray([0.0, 0.5, 2.0, 3.0])
    plain = value_and_grad(stepwise_elbo)
    keys = jax.random.split(KEY, 500)
    exact = jax.jit(jax.vmap(lambda k: plain(k, q, TARGET)[0]))(keys)
    np.testing.assert_allclose(at(ones), exact, rtol=1e-4, atol=1e-4)
    # KL_t in expectation, for the moments of x_{t-1} under the guide.
    mean, var, kls = 0.0, 0.0, []
    for t, y in enumerate(np.asarray(YS, float)):
        scale = np.exp(-0.2)
        m, v, prior = (0.2, 0.0, 1.5) if t == 0 else (0.8 * mean, 0.64 * var, 0.7)
        mq = 0.3 * y + (0.4 * mean if t else 0.0)
        between = 0.16 * var if t else 0.0
        gap = (mq - m) ** 2 + (0.4 - 0.8) ** 2 * var * (t > 0)
        kls.append(0.5 * (np.log(prior / scale**2) + (scale**2 + gap) / prior - 1))
        mean, var = mq, between + scale**2
    difference = np.asarray(at(weights) - at(ones))
    wanted = -np.sum((np.asarray(weights) - 1) * np.asarray(kls))
    error = difference.std() / np.sqrt(len(difference))
    assert abs(difference.mean() - wanted) < 4 * error < 0.5
    assert at(2.0 * ones).mean() < at(ones).mean() < LOG_Z < at(0.0 * ones).mean() + 3


def test_what_is_no_guide_by_steps_is_an_error():
    def other(ctx, x, t, *args):
        ctx.sample("other", dist.Normal(0.0, 1.0))

    guide = stepwise_guide(TARGET, ppl.Proposal(other))
    with pytest.raises(ppl.ProgramError, match="Propose every free site"):
        guide.simulate(KEY)
    with pytest.raises(ppl.ProgramError, match="is for a StateSpace"):
        stepwise_guide(ppl.program(lambda ctx: None), ppl.Proposal(other))
    with pytest.raises(ValueError, match="one a step"):
        weighted_elbo(jnp.ones((2, 2)))
