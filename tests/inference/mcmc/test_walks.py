"""Many moves at once: a walk is the moves one after the other, with what they share found once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac import ppl
from feynkac.inference import mcmc
from feynkac.inference.chains import MCMC
from feynkac.inference.samplers.traces import draw
from feynkac.ppl import dist

KEY = jax.random.key(6)  # by which some move of each kernel is accepted
MOVES = 2


@ppl.program
def model(ctx):
    s = ctx.sample("s", dist.LogNormal(0.0, 0.5))
    u = ctx.sample("u", dist.Uniform(-s, s))
    k = ctx.sample("k", dist.Bernoulli(probs=0.4))
    ctx.observe("y", dist.Normal(s + u + k.astype(float), 0.5), 1.0)


TARGET = ppl.Target(model)
SITES = ppl.select("s", "u")
KERNELS = {
    "HMC": mcmc.HMC(SITES, 0.3, 2),
    "every": mcmc.Every(mcmc.MALA(SITES, 0.1), 3),
    "a kernel without a walk of its own": mcmc.MH(ppl.select("u", "k")),
}


def begin(key):
    return mcmc.Chain(draw(key, TARGET)[0], None, jnp.zeros(()))


def second(key):
    return jax.random.split(key)[1]


@pytest.mark.parametrize("name", KERNELS)
def test_a_walk_is_its_moves(name):
    kernel, keys = KERNELS[name], jax.random.split(KEY, MOVES)

    @jax.jit
    def both():
        chain = begin(KEY)
        walk, state = kernel.walk(KEY, TARGET, chain)
        own = not isinstance(kernel, mcmc.MH)
        walked, moved = [], []
        for key in (keys[i] for i in range(MOVES)):
            state, rate = walk.step(second(key) if own else key, state)
            walked.append((walk.chain(state).trace, rate))
            chain = kernel.move(key, TARGET, chain)
            moved.append((chain.trace, chain.acceptance))
        return walked, moved

    walked, moved = both()
    for a, b in zip(jax.tree.leaves(walked), jax.tree.leaves(moved), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
    assert len({float(trace.choices["u"]) for trace, _ in walked}) > 1
    assert len({int(trace.choices["k"]) for trace, _ in walked[:1]}) == 1


def test_repeated_moves_share_their_gradient():
    """k moves of one leapfrog step take k + 1 gradients, not 2 k."""

    def gradients(times):
        count = []

        @ppl.program
        def counted(ctx):
            x = ctx.sample("x", dist.Normal(0.0, 1.0))
            ctx.factor("f", called(x))

        @jax.custom_jvp
        def called(x):
            return -(x**2)

        @called.defjvp
        def _(primals, tangents):
            jax.debug.callback(lambda: count.append(1))
            return called(*primals), -2 * primals[0] * tangents[0]

        kernel = mcmc.Repeat(mcmc.HMC(ppl.select("x"), 0.3, 1), times)
        target = ppl.Target(counted)
        trace = draw(KEY, target)[0]
        jax.block_until_ready(jax.jit(lambda key: kernel(key, target, trace).score)(KEY))
        jax.effects_barrier()
        return len(count)

    assert gradients(3) == 4


def test_chains_keep_what_they_do_not_move():
    chains = MCMC(KERNELS["HMC"], 2, 5, 1).run(KEY, TARGET)
    assert np.array_equal(chains.choices["k"], np.broadcast_to(chains.choices["k"][:, :1], (2, 5)))
    assert len(np.unique(chains.choices["u"][0])) > 1
    expected = jax.vmap(jax.vmap(TARGET.log_density))(chains.choices)
    np.testing.assert_allclose(chains.log_density, expected, rtol=1e-4)
