"""Importance sampling of programs, and what holds for every algorithm: keys, jit, vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import tiny_models as tiny

from feynkac import inference, ppl
from feynkac.inference import SMC, Importance
from feynkac.ppl import dist, laws

KEY = jax.random.key(29)


@ppl.program
def diagnosis(ctx, table):
    ill = ctx.sample("ill", dist.Bernoulli(probs=0.2))
    test = ctx.sample("test", ppl.Token(jnp.log(table[ill])))
    ctx.observe("fever", dist.Bernoulli(probs=jnp.where(ill == 1, 0.9, 0.1)), 1)
    ctx.factor("sure", jnp.array([-20.0, 0.0, 20.0])[test])


def _some(ctx, table):
    ctx.sample("ill", dist.Bernoulli(probs=0.6))


def _all(ctx, table):
    ill = ctx.sample("ill", dist.Bernoulli(probs=0.6))
    ctx.sample("test", ppl.Token(jnp.where(ill == 1, 1.0, 0.3) * jnp.arange(3.0)))


TABLE = np.array([[0.7, 0.3, 0.0], [0.3, 0.5, 0.2]])


@pytest.mark.parametrize(
    ("proposal", "n", "constraints"),
    [(_some, 1, {}), (_all, 4, {}), (_some, 2, {"test": 1}), (None, 4, {"test": 2})],
)
@pytest.mark.slow
def test_programs(proposal, n, constraints):
    """Proposals of some sites and of all, wider than the model; constraints."""
    target = ppl.Target(diagnosis, (jnp.asarray(TABLE, float),), constraints)
    algorithm = Importance(n, proposal and ppl.Proposal(init=proposal))
    laws.proper_weighting(KEY, algorithm, target, runs=2**13).check()


def test_a_proposal_of_a_constrained_site_is_an_error():
    target = ppl.Target(diagnosis, (jnp.asarray(TABLE, float),), {"test": 1})
    with pytest.raises(ppl.ProgramError, match="leave them out"):
        Importance(2, ppl.Proposal(init=_all)).run(KEY, target)


@pytest.mark.slow
def test_jit_vmap_and_keys():
    """The same numbers from run, run in jit, and run in vmap, up to last bits."""
    smc = SMC(4, inference.Systematic(ess_threshold=0.9))
    target = tiny.text(length=2)
    keys = jax.random.split(KEY, 3)
    loop = [smc.run(key, target) for key in keys]
    again = smc.run(keys[0], target)
    jax.tree.map(np.testing.assert_array_equal, again, loop[0])
    inside = jax.jit(lambda key: smc.run(key, target))(keys[0])
    batch = jax.vmap(lambda key: smc.run(key, target))(keys)
    with jax.disable_jit():
        eager = smc.run(keys[0], target)

    def same(p, q):
        np.testing.assert_allclose(p.log_weights, q.log_weights, rtol=1e-5, atol=1e-6)
        for a, b in ((p.choices, q.choices), (p.ancestors, q.ancestors), (p.lengths, q.lengths)):
            jax.tree.map(np.testing.assert_array_equal, a, b)

    same(inside, loop[0])
    same(eager, loop[0])
    for i, one in enumerate(loop):
        same(jax.tree.map(lambda x, i=i: x[i], batch), one)
