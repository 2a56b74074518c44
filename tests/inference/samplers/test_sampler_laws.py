"""Samplers keep their target on enumerable models; a kernel that does not is noticed."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Bool
from oracles import tiny_models as tiny

from feynkac import inference, ppl
from feynkac.inference import MH, Kernel, Repeat, samplers
from feynkac.inference.mcmc.kernel import Chain
from feynkac.inference.samplers import Exponents, Power
from feynkac.ppl import dist
from feynkac.ppl.laws.nested_density import nested_density
from feynkac.ppl.laws.proper_weighting import weighting
from feynkac.ppl.laws.result import decide

KEY = jax.random.key(17)
EVERYTHING = ~ppl.select()
# Two modes far apart, a ridge of zeros between them.
TABLE = np.array([[3.0, -np.inf], [-np.inf, -4.0], [-2.0, 2.5], [-np.inf, -np.inf]])
DATA = jnp.array([1, 0, 1, 1])


class Flawed(Kernel):
    """`MH` on everything; if `wrong` it accepts whatever is possible."""

    wrong: Bool[Array, ""] = eqx.field(converter=jnp.asarray)

    def move(self, key, target, chain, steps=None):
        new = MH(EVERYTHING).move(key, target, chain, steps)
        trace, log_w, _ = target.regenerate(key, chain.trace, EVERYTHING, steps)
        always = self.wrong & ~jnp.isneginf(log_w) & ~jnp.isnan(log_w)
        return Chain(
            jax.tree.map(lambda a, b: jnp.where(always, a, b), trace, new.trace),
            None,
            new.acceptance,
        )

    def reversed(self):
        return self


@ppl.program
def coin(ctx, k):
    ctx.sample("y", dist.Bernoulli(probs=0.15 + 0.2 * k.astype(float)))


@ppl.program
def small(ctx, table):
    k = ctx.sample("k", dist.Categorical(probs=jnp.array([0.4, 0.3, 0.2, 0.1])))
    b = ctx.sample("b", dist.Bernoulli(probs=0.3))
    ctx.factor("fit", table[k, b])
    ctx.call("data", ppl.vmap(coin), jnp.broadcast_to(k, (4,)))


def guess(ctx, table):
    ctx.sample("k", dist.Categorical(probs=jnp.array([0.1, 0.2, 0.4, 0.3])))


def target(table=TABLE):
    return ppl.Target(small, (jnp.asarray(table, float),), {"data": {"y": DATA}})


LAST = jnp.array([0.1, 0.4, 1.0])


def tempered(wrong, exponents=LAST, threshold=0.7):
    resampler = tiny.resampler(inference.SSP, threshold)
    return samplers.Tempered(4, Flawed(wrong), Exponents(exponents), resampler)


@pytest.fixture(scope="module")
def exact():
    return inference.exact.enumerate(target())


def holds(make, exact, runs=2**13):
    """The law holds, and is seen to break with a kernel that leaves nothing invariant."""
    decide("weighting", weighting(make(False), exact.target, exact), KEY, runs, "").check()
    z, _ = weighting(make(True), exact.target, exact)(KEY, runs)
    assert max(map(abs, z.values())) > 6


def test_tempered(exact):
    holds(tempered, exact)
    # Never resampling, resampling always, and steps of no size: the same compiled sampler.
    for exponents, threshold in ((LAST, 0.0), (jnp.array([0.5, 0.5, 1.0]), 1.0)):
        sampler = tempered(False, exponents, threshold)
        decide("", weighting(sampler, exact.target, exact), KEY, 2**12, "").check()


@pytest.mark.slow
def test_tempered_from_a_proposal(exact):
    def make(wrong):
        return samplers.Tempered(4, Flawed(wrong), LAST, proposal=guess)

    holds(make, exact)


@pytest.mark.slow
def test_a_power_of_the_likelihood():
    power = target().tempered(0.5)
    exact = inference.exact.enumerate(power)
    decide("", weighting(tempered(False), power, exact), KEY, 2**13, "").check()


@pytest.mark.slow
def test_tempered_texts_of_varying_length():
    """A StateSpace, with ends that are rejected: zero-weight regions."""
    exact = inference.exact.enumerate(tiny.text(tiny.HARSH, tiny.Ending(True)))
    holds(tempered, exact)


def test_waste_free(exact):
    def make(wrong):
        return samplers.WasteFree(6, Flawed(wrong), 3, LAST)

    holds(make, exact)


def test_data_annealing(exact):
    def make(wrong):
        resampler = tiny.resampler(inference.SSP, 0.9)
        return samplers.DataAnnealing(4, Flawed(wrong), 3, resampler)

    holds(make, exact)


@pytest.mark.slow
def test_data_annealing_of_masked_constraints(exact):
    """What is not known yet is drawn, and forgotten when it becomes known."""

    def known(target, t):
        some = ppl.Partial(DATA, jnp.arange(4) < 2 * t)
        return ppl.Target(target.model, target.args, {"data": {"y": some}})

    def make(wrong):
        resampler = tiny.resampler(inference.SSP, 0.9)
        return samplers.DataAnnealing(4, Flawed(wrong), 2, resampler, at=known)

    holds(make, exact)


@pytest.mark.slow
def test_densities_of_a_tempered_draw(exact):
    """Conditional runs by reversed kernels."""
    sampler = samplers.Tempered(2, MH(EVERYTHING), Exponents(LAST), tiny.resampler(inference.SSP))
    nested_density(KEY, sampler, exact.target, runs=2**13).check()


@pytest.mark.slow
def test_an_irreversible_kernel_is_reversed(exact):
    """A sequence of two kernels, run backwards in the past of the retained particle."""
    parts = [MH(ppl.select("k")), MH(ppl.select("b"))]
    kernel = inference.mcmc.Sequence(parts)
    sampler = samplers.Tempered(2, kernel, Exponents(LAST), tiny.resampler(inference.SSP, 1.0))
    nested_density(KEY, sampler, exact.target, runs=2**14).check()


CONSISTENT = {
    "persistent": lambda wrong: samplers.Persistent(200, Flawed(wrong), LAST),
    "adaptive-persistent": lambda wrong: samplers.Persistent(
        200, Flawed(wrong), samplers.AdaptiveStages(ess=1.5, max_stages=6)
    ),
    "nested": lambda wrong: samplers.NestedSampling(
        100, Repeat(Flawed(wrong), 10), 10, max_batches=100
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONSISTENT)
def test_consistent_samplers(name, exact):
    """Biased by about 1/N, far below the error of so many runs; plateaus, modes and zeros."""
    runs = 200

    @jax.jit
    def several(sampler, keys):
        def one(key):
            p = sampler.run(key, exact.target)
            mean = p.expectation(
                lambda c: jnp.stack([c["b"] == 1, *(c["k"] == i for i in range(4))])
            )
            return jnp.concatenate([jnp.exp(p.log_evidence - exact.log_evidence)[None], mean])

        return jax.vmap(one)(keys)

    want = exact.expectation(lambda c: jnp.stack([c["b"] == 1, *(c["k"] == i for i in range(4))]))
    want = np.concatenate([[1.0], want])
    keys = jax.random.split(KEY, runs)

    def z(wrong):
        values = np.asarray(several(CONSISTENT[name](wrong), keys), np.float64)
        error = np.maximum(values.std(0, ddof=1) / np.sqrt(runs), 1e-6)
        return np.abs((values.mean(0) - want) / error)

    assert z(False).max() < 4, z(False)
    assert z(True).max() > 6


@pytest.mark.slow
def test_the_error_that_one_run_claims(exact):
    """Of log Z, by waste-free sampling and by nested sampling, against the spread of many runs."""
    for sampler in (
        samplers.WasteFree(400, Flawed(False), 40, Power(5, 2.0)),
        samplers.NestedSampling(60, Repeat(Flawed(False), 10), 6, max_batches=80),
    ):
        many = jax.jit(jax.vmap(lambda key, s=sampler: s.measured(key, exact.target)))
        result = many(jax.random.split(KEY, 128))
        spread = np.asarray(result.particles.log_evidence).std(ddof=1)
        claimed = np.asarray(result.log_evidence_error)
        assert 0.75 < np.sqrt((claimed**2).mean()) / spread < 1.33
