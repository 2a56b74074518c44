"""Proposals that learn from earlier iterations: unbiased whatever they learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac import inference, ppl
from feynkac.inference.weighted import Locations, PopulationMonteCarlo
from feynkac.ppl import dist, laws
from feynkac.ppl.laws.proper_weighting import weighting
from feynkac.ppl.laws.result import decide
from feynkac.ppl.status import DEAD

KEY = jax.random.key(43)
SCORES = jnp.array([0.0, 2.0, -jnp.inf, 1.0])


@ppl.program
def pair(ctx, scores):
    """Two peaks and impossible values."""
    x = ctx.sample("x", dist.Categorical(probs=jnp.array([0.7, 0.1, 0.1, 0.1])))
    y = ctx.sample("y", dist.Bernoulli(probs=0.5))
    ctx.factor("fit", scores[x] + jnp.where((x == 3) & (y == 0), -jnp.inf, 0.0))


def _near(ctx, location, scores):
    stay = jax.nn.one_hot(location["x"], 4)
    ctx.sample("x", dist.Categorical(probs=0.6 * stay + 0.1))


def _fitted(ctx, probs, scores):
    ctx.sample("x", dist.Categorical(probs=probs))


def learn(particles):
    """What a user would write: the weighted frequencies, mixed with the uniform law."""
    w = jnp.exp(particles.log_weights - jnp.max(particles.log_weights))
    w = jnp.where(jnp.isneginf(particles.log_weights), 0.0, w)
    counts = jax.nn.one_hot(particles.choices["x"], 4).T @ w
    probs = 0.8 * counts / jnp.maximum(jnp.sum(counts), 1e-6) + 0.05
    return ppl.bind(ppl.Proposal(init=_fitted), probs / jnp.sum(probs))


TARGET = ppl.Target(pair, (SCORES,))
LOCATIONS = PopulationMonteCarlo(2, 3, Locations(ppl.Proposal(init=_near)))
LEARNED = PopulationMonteCarlo(2, 3, learn, discard=1)


def test_learned_proposals_are_properly_weighted():
    exact = inference.exact.enumerate(TARGET)
    decide("", weighting(LEARNED, TARGET, exact), KEY, 2**13, "").check()


@pytest.mark.slow
def test_locations_are_properly_weighted():
    exact = inference.exact.enumerate(TARGET)
    decide("", weighting(LOCATIONS, TARGET, exact), KEY, 2**13, "").check()


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [LOCATIONS, LEARNED], ids=["locations", "learned"])
def test_nested_densities(algorithm):
    laws.nested_density(KEY, algorithm, TARGET, runs=2**14).check()


@ppl.program
def far(ctx):
    x = ctx.sample("x", dist.Normal(0.0, 1.0))
    ctx.observe("y", dist.Normal(x, 0.1), 3.0)


def _gaussian(ctx, mean, scale):
    ctx.sample("x", dist.Normal(mean, scale))


def fit(particles):
    w = particles.weights
    mean = jnp.sum(w * particles.choices["x"])
    variance = jnp.sum(w * (particles.choices["x"] - mean) ** 2)
    return ppl.bind(ppl.Proposal(init=_gaussian), mean, jnp.sqrt(variance) + 0.05)


def test_it_learns():
    """A posterior in the prior's tail: the evidence by closed form, its error far below."""
    log_z = dist.Normal(0.0, np.sqrt(1.01)).log_prob(3.0)
    batch = PopulationMonteCarlo(500, 6, fit).iterations_of(KEY, ppl.Target(far))
    assert batch.log_weights.shape == (6, 500)
    assert batch.ess[0] < 50 and (batch.ess[3:] > 300).all()
    np.testing.assert_allclose(batch.log_evidence[3:], log_z, atol=0.1)
    later = jax.tree.map(lambda x: x[-1], batch)
    assert abs(float(later.expectation(lambda c: c["x"])) - 3.0 / 1.01) < 0.03


@pytest.mark.slow
def test_a_run_is_its_kept_iterations():
    algorithm = PopulationMonteCarlo(4, 3, learn, discard=1)
    run = algorithm.run(KEY, TARGET)
    batch = algorithm.iterations_of(jax.random.split(KEY)[0], TARGET)
    np.testing.assert_allclose(run.log_weights, batch.log_weights[1:].ravel(), rtol=1e-5)
    np.testing.assert_array_equal(run.choices["x"], batch.choices["x"][1:].ravel())
    dead = algorithm.run(KEY, ppl.Target(pair, (jnp.full(4, -jnp.inf),)))
    assert int(dead.status.code) == DEAD and np.isneginf(dead.log_weights).all()


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="at least two iterations"):
        PopulationMonteCarlo(10, 1, learn)
    three = PopulationMonteCarlo(5, 2, lambda p: (learn(p), None))
    with pytest.raises(ValueError, match="use a multiple"):
        three.run(KEY, TARGET)
