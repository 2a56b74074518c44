"""A NumPyro model has the same joint density as a generative function."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from compile_count import compiles
from numpyro.infer.reparam import LocScaleReparam
from numpyro.infer.util import log_density

from feynkac import inference, ppl
from feynkac.ppl import dist
from feynkac.ppl.from_numpyro import from_numpyro

KEY = jax.random.key(5)
Y = np.array([[0.3, -1.0, 2.0], [1.0, 0.2, 0.1]])


def everything(x, scale, y=None):
    """Plates in plates, a factor, a mask, a scale, a deterministic, a joint site."""
    loc = numpyro.sample("loc", dist.Normal(0.0, 1.0))
    rate = numpyro.sample("rate", dist.Exponential(2.0))
    weight = numpyro.sample("weight", dist.Dirichlet(jnp.ones(3)))
    numpyro.factor("extra", -rate * jnp.sum(weight**2))
    with numpyro.plate("groups", 2, dim=-2):
        spread = numpyro.sample("spread", dist.HalfNormal(scale))
        with (
            numpyro.plate("members", 3),
            numpyro.handlers.mask(mask=jnp.array([True, True, False])),
        ):
            numpyro.sample("y", dist.Normal(loc + x, spread), obs=y)
    with numpyro.handlers.scale(scale=0.25):
        numpyro.sample("z", dist.Poisson(3.0), obs=jnp.array(2))
    return numpyro.deterministic("total", jnp.sum(spread) + loc)


X = jnp.array([0.1, 0.2, 0.3])
POINT = {
    "loc": jnp.array(0.4),
    "rate": jnp.array(0.6),
    "weight": jnp.array([0.2, 0.5, 0.3]),
    "spread": jnp.array([[0.7], [1.3]]),
}


def test_the_same_density():
    model = from_numpyro(everything, X, 1.5, y=Y)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        want, _ = log_density(everything, (X, 1.5), {"y": jnp.asarray(Y)}, POINT)
    have, retval = model.assess(POINT)
    np.testing.assert_allclose(have, want, rtol=1e-5)
    np.testing.assert_allclose(retval["total"], 2.4, rtol=1e-6)
    outside, _ = model.assess({**POINT, "rate": jnp.array(-0.1)})
    assert outside == -jnp.inf
    # What is observed, and the factor, are likelihood; the latent sites are prior.
    trace, log_w = model.generate(KEY, POINT)
    prior = trace.score
    names = {"loc": dist.Normal(0.0, 1.0), "rate": dist.Exponential(2.0)}
    names |= {"weight": dist.Dirichlet(jnp.ones(3))}
    expected = sum(d.log_prob(POINT[n]) for n, d in names.items())
    expected += dist.HalfNormal(1.5).log_prob(POINT["spread"]).sum()
    np.testing.assert_allclose(prior, expected, rtol=1e-5)
    np.testing.assert_allclose(ppl.Target(model).tempered(0.0).log_density(POINT), prior, rtol=1e-5)


@pytest.mark.slow
def test_the_laws_of_the_interface():
    def model(p):
        a = numpyro.sample("a", dist.Bernoulli(p))
        with numpyro.plate("both", 2):
            b = numpyro.sample("b", dist.Bernoulli(0.2 + 0.5 * a))
        numpyro.sample("y", dist.Normal(b.sum(), 1.0), obs=1.3)

    ppl.laws.interface(KEY, from_numpyro(model, 0.3), selection=ppl.select("a")).check()


def test_handlers_around_the_model():
    def centred():
        tau = numpyro.sample("tau", dist.HalfNormal(2.0))
        numpyro.sample("x", dist.Normal(1.0, tau))

    noncentred = numpyro.handlers.reparam(centred, config={"x": LocScaleReparam(0)})
    trace = from_numpyro(noncentred).simulate(KEY)
    assert set(trace.choices) == {"tau", "x_decentered"}
    tau, eps = trace.choices["tau"], trace.choices["x_decentered"]
    np.testing.assert_allclose(trace.retval["x"], 1.0 + tau * eps, rtol=1e-5)
    given = numpyro.handlers.condition(centred, data={"x": jnp.array(2.0)})
    trace = from_numpyro(given).simulate(KEY)
    assert set(trace.choices) == {"tau"}
    want = dist.Normal(1.0, trace.choices["tau"]).log_prob(2.0)
    np.testing.assert_allclose(trace.log_weight, want, rtol=1e-5)
    # A latent site under a mask keeps its prior: it is drawn, so it has its density.
    masked = numpyro.handlers.mask(centred, mask=False)
    trace = from_numpyro(masked).simulate(KEY)
    want = dist.HalfNormal(2.0).log_prob(trace.choices["tau"])
    want += dist.Normal(1.0, trace.choices["tau"]).log_prob(trace.choices["x"])
    np.testing.assert_allclose(trace.score, want, rtol=1e-5)


def test_what_is_not_taken():
    def minibatch():
        with numpyro.plate("data", 10, subsample_size=5):
            numpyro.sample("x", dist.Normal())

    def param():
        numpyro.param("theta", 1.0)

    def improper():
        numpyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))

    def loops():
        from numpyro.contrib.control_flow import scan

        scan(lambda c, _: (c, numpyro.sample("x", dist.Normal())), None, None, length=3)

    for model, message in (
        (minibatch, "minibatch of 5 of 10"),
        (param, "substitute"),
        (improper, "improper prior"),
        (loops, "ppl.scan"),
    ):
        with pytest.raises(ppl.ProgramError, match=message):
            from_numpyro(model).simulate(KEY)
    with pytest.raises(ppl.ProgramError, match="observed or a factor"):
        from_numpyro(everything, X, 1.5, y=Y).generate(KEY, {"y": jnp.asarray(Y, float)})


def test_new_data_compile_nothing():
    def model(x, y):
        slope = numpyro.sample("slope", dist.Normal(0.0, 2.0))
        numpyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

    smc = inference.Importance(50)
    first, second = (from_numpyro(model, x, np.array([0.1, x])) for x in (1.0, 2.0))
    before = smc.run(KEY, first)
    other = jax.random.key(6)
    with compiles() as count:
        after = smc.run(other, second)
    assert count.count == 0, count.names
    assert before.log_evidence != after.log_evidence
