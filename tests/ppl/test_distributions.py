"""NumPyro's distributions at sites as they are, under strict promotion."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from feynkac import ppl
from feynkac.ppl.distributions import finite_support

KEY = jax.random.key(0)
V = jnp.array([0.2, 0.3, 0.5])
PAIR = jnp.array([1.0, 2.0])

# a distribution, and values outside its support where that is a set of scalars
DISTRIBUTIONS = {
    "normal": (lambda: dist.Normal(PAIR, 1.0), []),
    "cauchy": (lambda: dist.Cauchy(0.0, 1.0), []),
    "student": (lambda: dist.StudentT(3.0, 0.0, 1.0), []),
    "laplace": (lambda: dist.Laplace(0.0, PAIR), []),
    "gamma": (lambda: dist.Gamma(PAIR, 1.0), [[-1.0, 1.0]]),
    "inverse gamma": (lambda: dist.InverseGamma(2.0, 1.0), [-1.0]),
    "beta": (lambda: dist.Beta(2.0, 3.0), [-0.5, 1.5]),
    "exponential": (lambda: dist.Exponential(2.0), [-1.0]),
    "half normal": (lambda: dist.HalfNormal(1.0), [-1.0]),
    "half cauchy": (lambda: dist.HalfCauchy(1.0), [-1.0]),
    "log normal": (lambda: dist.LogNormal(0.0, 1.0), [-1.0]),
    "uniform": (lambda: dist.Uniform(0.0, PAIR), [[0.5, 3.0], [-0.5, 1.0]]),
    "truncated normal": (lambda: dist.TruncatedNormal(0.0, 1.0, low=0.5), [0.0]),
    "pareto": (lambda: dist.Pareto(1.0, 3.0), [0.5]),
    "gumbel": (lambda: dist.Gumbel(0.0, 1.0), []),
    "von mises": (lambda: dist.VonMises(0.0, 2.0), [4.0]),
    "bernoulli": (lambda: dist.Bernoulli(logits=PAIR), [[2, 0], [-1, 0]]),
    "binomial": (lambda: dist.Binomial(5, 0.3), [6, -1]),
    "poisson": (lambda: dist.Poisson(PAIR), [[-1, 1]]),
    "geometric": (lambda: dist.Geometric(0.3), [-1]),
    "negative binomial": (lambda: dist.NegativeBinomial2(2.0, 3.0), [-1]),
    "categorical": (lambda: dist.Categorical(probs=V), [3, -1]),
    "ordered logistic": (lambda: dist.OrderedLogistic(0.3, PAIR), [3, -1]),
    "discrete uniform": (lambda: dist.DiscreteUniform(1, 4), [0, 5]),
    "token": (lambda: ppl.Token(jnp.zeros((2, 3))), [[3, 0], [0, -1]]),
    "multivariate normal": (lambda: dist.MultivariateNormal(PAIR, jnp.eye(2)), []),
    "low rank": (
        lambda: dist.LowRankMultivariateNormal(PAIR, jnp.ones((2, 1)), jnp.ones(2)),
        [],
    ),
    "dirichlet": (lambda: dist.Dirichlet(V), []),
    "batch of dirichlet": (lambda: dist.Dirichlet(jnp.ones((4, 3))), []),
    "lkj cholesky": (lambda: dist.LKJCholesky(3, 1.0), []),
    "lkj": (lambda: dist.LKJ(3, 1.0), []),
    "multinomial": (lambda: dist.Multinomial(5, probs=V), []),
    "independent": (lambda: dist.Exponential(jnp.ones((4, 2))).to_event(1), [-jnp.ones((4, 2))]),
    "independent uniform": (lambda: dist.Uniform(0.0, PAIR).to_event(1), [[0.5, 3.0]]),
    "expanded": (lambda: dist.HalfNormal(1.0).expand([3]), [[1.0, -1.0, 1.0]]),
    "mixture": (
        lambda: dist.MixtureSameFamily(dist.Categorical(probs=V), dist.Exponential(V)),
        [-1.0],
    ),
    "vector mixture": (
        lambda: dist.MixtureSameFamily(
            dist.Categorical(probs=V), dist.MultivariateNormal(jnp.ones((3, 2)), jnp.eye(2))
        ),
        [],
    ),
    "transformed": (
        lambda: dist.TransformedDistribution(dist.Normal(0.0, 1.0), dist.transforms.ExpTransform()),
        [-1.0],
    ),
    "delta": (lambda: dist.Delta(PAIR), [[0.0, 2.0]]),
    "zero inflated": (lambda: dist.ZeroInflatedPoisson(0.3, 2.0), [-1]),
    "random walk": (lambda: dist.GaussianRandomWalk(1.0, 5), []),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.slow
def test_as_it_is(name):
    make, outside = DISTRIBUTIONS[name]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        d = make()
        shape = d.batch_shape + d.event_shape
    program = ppl.program(lambda ctx: ctx.sample("x", d))
    trace = program.simulate(KEY)
    value = trace.choices["x"]
    assert value.shape == shape and trace.score.shape == ()
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        want = d.log_prob(value).sum()
    np.testing.assert_allclose(trace.score, want, rtol=1e-5)
    log_p, value_again = program.assess({"x": value})
    np.testing.assert_allclose(log_p, want, rtol=1e-4)
    np.testing.assert_array_equal(value_again, value)
    for bad in outside:
        bad = jnp.asarray(bad).astype(value.dtype)
        assert program.assess({"x": bad})[0] == -jnp.inf, bad
        if jnp.issubdtype(bad.dtype, jnp.floating):
            gradient = jax.grad(lambda x: program.assess({"x": x})[0])(bad)
            assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize(
    "value, mask, want", [(-1.0, False, 0.0), (-1.0, True, -np.inf), (1.0, True, -1.0)]
)
def test_masked_out_observations_count_nothing(value, mask, want):
    masked = ppl.program(lambda ctx: ctx.observe("x", dist.Exponential(1.0).mask(mask), value))
    np.testing.assert_allclose(masked.simulate(KEY).log_weight, want)


def test_observing_outside_the_support_is_weight_zero():
    program = ppl.program(lambda ctx, x: ctx.observe("x", dist.Uniform(0.0, 1.0), x))
    assert program.simulate(KEY, 2.0).log_weight == -jnp.inf
    assert program.simulate(KEY, 0.5).log_weight == 0.0


@pytest.mark.parametrize(
    "d, size",
    [
        (dist.Bernoulli(0.3), 2),
        (dist.Categorical(probs=V), 3),
        (dist.Bernoulli(jnp.full(3, 0.5)), 8),
        (ppl.Token(jnp.zeros((2, 3))), 9),
        (dist.Binomial(4, 0.5), 5),
    ],
)
def test_finite_supports_sum_to_one(d, size):
    values = finite_support(d)
    assert values is not None and values.shape[0] == size == len(np.unique(values, axis=0))
    log_probs = jax.vmap(lambda v: d.log_prob(v).sum())(values)
    np.testing.assert_allclose(jnp.exp(log_probs).sum(), 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    "d", [dist.Normal(0.0, 1.0), dist.Poisson(1.0), dist.Multinomial(3, probs=V)]
)
def test_infinite_supports_are_none(d):
    assert finite_support(d) is None
