"""A batch of runs is the separate runs; one member's fate is its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import ending, hmm

from feynkac import inference, ppl
from feynkac.inference.smc import _run_many, run_many
from feynkac.ppl.status import DEAD, OK

KEY = jax.random.key(0)
B, N, T = 4, 8, 6
smc = inference.SMC(N)


def symbols():
    return jax.random.randint(jax.random.key(9), (B, T), 0, 3)


def compare(batch, i, single):
    np.testing.assert_array_equal(batch.ancestors[i], single.ancestors)
    np.testing.assert_array_equal(batch.resampled[i], single.resampled)
    np.testing.assert_array_equal(batch.lengths[i], single.lengths)
    np.testing.assert_allclose(batch.log_weights[i], single.log_weights, atol=1e-4)
    np.testing.assert_allclose(batch.ess_history[i], single.ess_history, rtol=1e-3)


@pytest.mark.slow
def test_equals_separate_runs_and_an_outer_vmap():
    model, data = hmm(T).model, symbols()
    batch = run_many(smc, KEY, ppl.Target(model, (data,)))
    assert bool(jnp.any(batch.resampled.any(0) & ~batch.resampled.all(0)))  # members differ
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(B))
    outer = jax.vmap(lambda k, y: smc.run(k, ppl.Target(model, (y,))))(keys, data)
    for i in range(B):
        single = smc.run(keys[i], ppl.Target(model, (data[i],)))
        compare(batch, i, single)
        compare(outer, i, single)


def test_resampling_is_one_decision_a_step():
    target = ppl.Target(hmm(T).model, (symbols(),))
    keys = jax.random.split(KEY, B)
    outer = jax.jit(jax.vmap(lambda k, y: smc.run(k, ppl.Target(target.model, (y,)))))
    for lowered in (_run_many.lower(smc, KEY, target), outer.lower(keys, symbols())):
        text = lowered.as_text()
        assert "stablehlo.case" in text or "stablehlo.if" in text


def dying_init(ctx, fatal):
    return jnp.zeros((), jnp.int32)


def dying_step(ctx, state, t, fatal):
    x = ctx.sample("x", ppl.dist.Bernoulli(probs=jnp.asarray(0.5)))
    ctx.factor("fit", jnp.where(x == 1, 0.0, -2.0))
    ctx.factor("fatal", jnp.where(t == fatal, -jnp.inf, 0.0))
    return x


def test_a_dead_member_is_alone():
    model = ppl.StateSpace(dying_init, dying_step, T)
    fatal = jnp.array([99, 2, 99], jnp.int32)
    batch = run_many(smc, KEY, ppl.Target(model, (fatal,)))
    np.testing.assert_array_equal(batch.status.code, [OK, DEAD, OK])
    assert int(batch.status.step[1]) == 2 and not bool(batch.status)
    assert batch.log_evidence[1] == -jnp.inf
    for i in (0, 2):
        compare(batch, i, smc.run(jax.random.fold_in(KEY, i), ppl.Target(model, (fatal[i],))))
    with pytest.raises(inference.InferenceError, match="run 1: all particles died at step 2"):
        run_many(smc, KEY, ppl.Target(model, (fatal,)), throw=True)


def test_members_that_finish_early_wait():
    single = ending(length=T)
    hazards = jnp.array([1.0, 0.5, 0.05])
    good = jnp.broadcast_to(single.args[1], (3, T))
    batch = run_many(smc, KEY, ppl.Target(single.model, (hazards, good)))
    assert int(batch.lengths[0].max()) == 1 and int(batch.lengths[2].max()) == T
    for i in range(3):
        target = ppl.Target(single.model, (hazards[i], good[i]))
        compare(batch, i, smc.run(jax.random.fold_in(KEY, i), target))


def test_everything_has_the_batch_axis():
    with pytest.raises(ValueError, match="one leading batch axis"):
        run_many(smc, KEY, ppl.Target(hmm(T).model, (symbols(), jnp.zeros(3))))
