"""Gibbs by enumeration: single sites, blocks over several sites, instances of a vector."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import tiny_models as tiny

from feynkac import inference, ppl
from feynkac.inference import SMC, mcmc
from feynkac.ppl import dist, laws
from feynkac.ppl.laws.invariance import OnTraces, moving
from feynkac.ppl.laws.proper_weighting import weighting
from feynkac.ppl.laws.result import decide

KEY = jax.random.key(53)
EVERY = ~ppl.select()


@pytest.mark.parametrize(
    "kernel",
    [
        mcmc.Gibbs(ppl.select("token")[1:] | ppl.select("mood")),
        pytest.param(mcmc.BlockGibbs(EVERY, 2), marks=pytest.mark.slow),
    ],
    ids=["single", "block"],
)
@pytest.mark.slow
def test_texts(kernel):
    """Impossible tokens; an end moves only where it does not change what happens."""
    for reject in (False, True):
        exact = inference.exact.enumerate(tiny.text(tiny.MILD, tiny.Ending(reject)))
        decide("Gibbs", moving(OnTraces(kernel, exact.target), exact), KEY, 2**15, "").check()


@pytest.mark.slow
def test_rejuvenation_keeps_weights_proper():
    exact = inference.exact.enumerate(tiny.text(tiny.MILD, tiny.Ending(True)))
    smc = SMC(2, tiny.resampler(inference.Systematic, 0.9), kernel=mcmc.Gibbs(EVERY))
    decide("rejuvenation", weighting(smc, exact.target, exact), KEY, 2**13, "").check()


@ppl.program
def spin(ctx, bias):
    return ctx.sample("s", dist.Categorical(logits=bias))


@ppl.program
def field(ctx):
    """Three spins of three values that are only coupled, and a coin that changes the coupling."""
    coin = ctx.sample("coin", dist.Bernoulli(probs=0.3))
    s = ctx.call("spins", ppl.vmap(spin), jnp.zeros((3, 3)))
    ctx.sample("pair", dist.Bernoulli(probs=jnp.array([0.2, 0.6])))
    same = (s[0] == s[1]).astype(float) + (s[1] == s[2]).astype(float)
    ctx.factor("coupling", jnp.where(coin == 1, 1.5, -0.8) * same)


def test_from_one_block_the_whole_law():
    """A block of everything forgets its start: the exact law after one move from any one."""
    exact = inference.exact.enumerate(field)
    kernel = mcmc.BlockGibbs(ppl.select("coin", ("spins", "s")), 4)
    start = field.simulate(KEY)

    @jax.jit
    def moved(keys):
        return jax.vmap(lambda key: kernel(key, exact.target, start).choices)(keys)

    n = 2**13
    choices = moved(jax.random.split(KEY, n))
    code = np.asarray(choices["coin"]) + 2 * (np.asarray(choices["spins"]["s"]) @ 3 ** np.arange(3))
    p = np.zeros(54)
    s = np.asarray(exact.choices["spins"]["s"])
    np.add.at(
        p, np.asarray(exact.choices["coin"]) + 2 * (s @ 3 ** np.arange(3)), np.exp(exact.log_probs)
    )
    z = (np.bincount(code, minlength=54) / n - p) / np.sqrt(p * (1 - p) / n)
    assert np.abs(z).max() < 4
    assert (np.asarray(choices["pair"]) == np.asarray(start.choices["pair"])).all()


@pytest.mark.slow
def test_instances_and_vectors():
    """One instance of a vmap at a time; a vector site is drawn jointly."""
    everything = mcmc.Gibbs(EVERY)
    laws.invariance(KEY, everything, field, runs=2**14, steps=1).check()
    some = ppl.Target(field, (), {"spins": {"s": ppl.Partial(jnp.ones(3, int), jnp.arange(3) < 1)}})
    laws.invariance(KEY, mcmc.BlockGibbs(EVERY, 2), some, runs=2**14, steps=1).check()


@ppl.program
def mixed(ctx):
    ctx.sample("x", dist.Normal(0.0, 1.0))
    ctx.sample("k", dist.Bernoulli(probs=0.5))
    ctx.sample("many", dist.Poisson(2.0))


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (ppl.select("x"), "'x' has no finite support: use HMC"),
        (ppl.select("many"), "'many' has no finite support"),
        (ppl.select(), r"nothing to move.*\['k', 'many', 'x'\]: select some"),
        (ppl.select("k"), r"nothing to move.*fixes \['k'\]: select others"),
    ],
)
def test_errors(selection, message):
    target = ppl.Target(mixed, (), {"k": jnp.ones((), jnp.int32)} if "fixes" in message else {})
    with pytest.raises(ppl.ProgramError, match=message):
        jax.eval_shape(lambda key: mcmc.Gibbs(selection)(key, target, mixed.simulate(key)), KEY)


def test_an_estimated_density():
    @ppl.program
    def outer(ctx):
        ctx.sample("n", ppl.normalize(mixed, inference.Importance(2)))
        ctx.sample("k", dist.Bernoulli(probs=0.5))

    kernel = mcmc.Gibbs(ppl.select("k"))
    with pytest.raises(ppl.ProgramError, match="estimated"):
        jax.eval_shape(lambda key: kernel(key, ppl.Target(outer), outer.simulate(key)), KEY)
