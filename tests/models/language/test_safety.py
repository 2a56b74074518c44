"""Budgets that no text exceeds: the law by enumeration, the guarantee in every particle."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac import inference, models, ppl
from feynkac.models.finite import MarkovLanguageModel, MarkovLM
from feynkac.models.language.safety import Safety

EOS, T = 0, 5
TABLE = np.array([[0.1, 0.5, 0.4], [0.1, 0.3, 0.6], [0.05, 0.05, 0.9]])
LM = MarkovLanguageModel(MarkovLM(jnp.log(TABLE[0]), jnp.log(TABLE), EOS))
COST = np.array([0.25, 0.0, 1.0])


def evidence(budget, soft=np.inf, rate=1.0):
    """Log of the sum over texts that end of p(x) times what they weigh."""
    total = -np.inf
    for n in range(T):
        for x in itertools.product([1, 2], repeat=n):
            log_p = sum(np.log(TABLE[a, b]) for a, b in itertools.pairwise([1, *x, EOS]))
            cost = COST[list(x)].sum() + COST[EOS]
            if cost <= budget:
                total = np.logaddexp(total, log_p - rate * max(0.0, cost - soft))
    return total


def test_law_and_guarantee():
    settings = np.array([[0.25, 9.0, 0.0], [2.0, 9.0, 0.0], [2.25, 0.5, 1.5], [9.0, 1.0, 0.7]])
    story = models.generation(LM, [1], T)

    want = [evidence(*s) for s in settings]

    @jax.jit
    @jax.vmap
    def run(key, setting):
        return inference.SMC(4).run(key, story * Safety(COST, *setting))

    rows = jnp.repeat(jnp.asarray(settings, dtype=float), 1000, axis=0)
    runs = run(jax.random.split(jax.random.key(0), 4000), rows)
    runs = jax.tree.map(lambda x: x.reshape(4, 1000, *x.shape[1:]), runs)
    ratio = np.exp(np.asarray(runs.log_evidence) - np.asarray(want)[:, None])
    error = ratio.std(1) / np.sqrt(1000)
    assert (np.abs(ratio.mean(1) - 1) < 4 * error + 1e-6).all()
    tokens, lengths = np.asarray(runs.choices["token"]), np.asarray(runs.lengths)
    written = np.arange(T) < lengths[..., None]
    cost = np.where(written, COST[tokens], 0.0).sum(-1)
    assert (cost <= settings[:, None, None, 0]).all(), "of all particles, whatever their weight"
    assert np.isfinite(np.asarray(runs.log_weights)).all(), "none comes to a dead end"
    assert (tokens == EOS).any(-1).all()


def test_keep_needs_no_end():
    story = models.generation(LM, [1], T, at_length=ppl.Keep()) * Safety(COST, 1.25)
    traces = jax.jit(jax.vmap(story.simulate))(jax.random.split(jax.random.key(1), 500))
    tokens = np.asarray(traces.choices["token"])
    before = np.cumsum(tokens == EOS, 1) - (tokens == EOS) == 0
    assert (np.where(before, COST[tokens], 0.0).sum(-1) <= 1.25).all()
    assert np.isfinite(traces.log_weight).all() and (tokens != EOS).all(1).any()


def test_costs_of_steps_and_errors():
    from feynkac.models.language.units import Steps

    lengthy = Steps(Safety(lambda unit: unit.length, budget=4, soft=2, rate=0.5), "\n", 8)
    vocabulary = models.Vocabulary([b"", b"a", b"\n"], EOS)
    on = lengthy.over(vocabulary)

    @jax.jit
    def weigh(tokens):
        state = on.start(8)
        for token in tokens:
            state = on.advance(state, token)
        return on.log_complete(state)

    weights = [float(weigh(jnp.array(x))) for x in ([1, 2, 1, 2], [1, 1, 2, 1], [1, 1, 1, 1, 1])]
    assert np.allclose(weights, [0.0, -0.5, -np.inf])
    with pytest.raises(ValueError, match="end alone costs"):
        models.generation(LM, [1], T) * Safety(COST, 0.1)
    with pytest.raises(ValueError, match=">= 0"):
        Safety(np.array([0.0, -1.0]))
