"""The ledger against counts by hand."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import ending, hmm

from feynkac import inference, ppl
from feynkac.inference.ledger import Ledger, ledger, metered

KEY = jax.random.key(11)
N = 6


def _init(ctx, alive):
    return {"count": jnp.zeros((), jnp.int32), "ended": jnp.zeros((), bool)}


def _step(ctx, state, t, alive):
    stop = ctx.sample("stop", ppl.dist.Bernoulli(probs=0.4)) == 1
    size = ctx.sample("size", ppl.dist.Categorical(probs=jnp.full(3, 1 / 3)))
    # Who stops is mostly discarded, so that survivors say little of what was spent.
    ctx.factor("f", jnp.where(stop, alive, 0.0))
    return {"count": state["count"] + size.astype(jnp.int32), "ended": stop}


def _ended(state):
    return state["ended"]


def _tokens(choices):
    return choices["size"] + 1


def target(alive=-1.5, length=7):
    model = ppl.StateSpace(_init, _step, length, _ended)
    return ppl.Target(model, (jnp.asarray(alive, float),))


@eqx.filter_jit
def _begin(smc, key, target):
    return smc.driver(target).init(key)


@eqx.filter_jit
def _advance(smc, key, target, population, t):
    return smc.driver(target).advance(key, population, t, 1)


def by_hand(smc, key, target):
    """Moves, tokens, passes: the driver one step at a time, looking at every particle."""
    driver = smc.driver(target)
    population, moves, tokens, passes = _begin(smc, key, target), 0, 0, 0
    for t in range(driver.length):
        done = np.asarray(population.state["ended"])
        population = _advance(smc, key, target, population, jnp.int32(t))
        parents = np.asarray(population.ancestors[t])
        active = ~done[parents]
        sizes = np.asarray(population.store["choices"]["size"][t]) + 1
        moves, tokens = moves + active.sum(), tokens + sizes[active].sum()
        passes += int(active.any())
    return moves, tokens, passes


def test_what_is_discarded_counts():
    smc = inference.SMC(N, inference.Systematic(ess_threshold=0.9))
    surprises = 0
    for i in range(3):
        key = jax.random.fold_in(KEY, i)
        particles, spent = metered(smc, key, target(), tokens=_tokens)
        plain = smc.run(key, target())
        np.testing.assert_array_equal(particles.choices["size"], plain.choices["size"])
        assert float(particles.log_evidence) == pytest.approx(float(plain.log_evidence), abs=1e-6)
        moves, tokens, passes = by_hand(smc, key, target())
        assert (spent.moves, spent.tokens, spent.passes) == (moves, tokens, passes)
        assert spent.rewards == moves and spent.resamplings == np.sum(plain.resampled)
        assert spent.seconds > 0 and np.any(np.asarray(plain.resampled))
        surprises += int(moves) != int(np.sum(plain.lengths))
    assert surprises  # the survivors' lengths are another number
    with pytest.raises(ValueError, match="inference.metered"):
        ledger(plain)


@pytest.mark.slow
def test_runs_without_resampling_know_their_cost():
    particles = inference.Importance(N).run(KEY, target())
    spent = ledger(particles)
    metered_particles, counted = metered(inference.Importance(N), KEY, target())
    assert spent.moves == counted.moves == int(np.sum(particles.lengths))
    assert spent.passes == counted.passes == int(np.max(particles.lengths))
    with pytest.raises(TypeError, match="metered"):
        ledger(3.0)


@pytest.mark.slow
def test_a_batch_is_its_runs():
    targets = ppl.Target(target().model, (jnp.array([-1.5, -0.5, -4.0]),))
    smc = inference.SMC(N)
    particles, spent = metered(smc, KEY, targets, tokens=_tokens, many=True)
    plain = inference.run_many(smc, KEY, targets)
    np.testing.assert_allclose(particles.log_weights, plain.log_weights, atol=1e-6)
    for i, alive in enumerate((-1.5, -0.5, -4.0)):
        one = metered(smc, jax.random.fold_in(KEY, i), target(alive), tokens=_tokens)[1]
        assert (spent.moves[i], spent.tokens[i]) == (one.moves, one.tokens)
        assert spent.passes[i] == one.passes
    assert spent.total().moves == spent.moves.sum() and "3 runs" in repr(spent)


def test_sums_and_refusals():
    batch = Ledger([1, 2], [3, 4], [5, 6], [7, 8], [0, 1], 0.5)
    both = batch.total() + Ledger(1, 2, 3, 4, 5, 0.25)
    assert (both.tokens, both.moves, both.passes) == (4, 9, 9)  # the longest run's passes
    assert (both.rewards, both.resamplings, both.seconds) == (19, 6, 0.75)
    with pytest.raises(ValueError, match="extra="):
        metered(inference.SMC(N, twist=inference.Lookahead(1)), KEY, target())
    with pytest.raises(ValueError, match="Record.choices"):
        metered(inference.SMC(N, record=inference.Record.last()), KEY, target(), tokens=_tokens)


@pytest.mark.slow
def test_models_without_an_end():
    _, spent = metered(inference.SMC(N), KEY, hmm(5))
    assert spent.moves == spent.tokens == 5 * N and spent.passes == 5
    kernel = inference.MH(ppl.select("end"))
    _, spent = metered(inference.SMC(N, kernel=kernel), KEY, ending(length=4), extra=2)
    assert spent.moves == spent.tokens == 3 * spent.rewards and spent.passes in (3, 6, 9, 12)
