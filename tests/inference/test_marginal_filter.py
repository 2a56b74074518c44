"""The marginal particle filter against Kalman and forward answers, and against paths."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac import inference, models, ppl
from feynkac.inference.marginal_filter import MarginalFilter
from feynkac.ppl import dist

KEY = jax.random.key(0)
YS = jnp.array([[0.3], [-0.6], [1.2], [0.5], [0.9]])


def z(samples, truth):
    samples = np.asarray(samples, np.float64)
    return (samples.mean(0) - truth) / (samples.std(0, ddof=1) / np.sqrt(len(samples)))


@pytest.mark.slow
def test_unbiased_and_less_noisy_than_paths():
    one = jnp.eye(1)
    model = models.finite.LinearGaussian(jnp.zeros(1), one, 0.9 * one, 0.5 * one, one, 0.6 * one)
    level, (means, _) = float(model.log_evidence(YS)), model.filtered(YS)
    target = ppl.Target(model.state_space(5), (YS,))

    def guide(ctx, state, t, *args):
        ctx.sample("x", dist.Normal(jnp.zeros(1), 1.5).to_event(1))

    proposal = ppl.Proposal(guide)  # looks at nothing: what paths pay for, the mixture forgives

    def both(key):
        m = MarginalFilter(24, proposal).run(key, target)
        p = inference.SMC(24, inference.Systematic(ess_threshold=1.0), proposal).run(key, target)
        moment = jnp.mean(jnp.exp(m.log_weights[-1] - level) * m.states[-1][:, 0])
        ratio, history = jnp.exp(m.log_evidence - level), m.log_evidence_history
        return ratio, moment, history, jnp.exp(p.log_evidence - level), m.ess[-1], p.ess

    ratio, moment, history, paths, ess, path_ess = jax.jit(jax.vmap(both))(
        jax.random.split(KEY, 500)
    )
    assert abs(z(ratio, 1)) < 4 and abs(z(paths, 1)) < 4
    assert abs(z(moment, float(means[-1, 0]))) < 4
    assert np.allclose(history[:, -1], np.log(ratio) + level, atol=1e-4)
    assert np.var(ratio) < 0.85 * np.var(paths)
    assert z(ess - path_ess, 0) > 8


MOVE = np.array([[0.9, 0.1], [0.2, 0.8]])
EMIT = np.array(  # of whether the total is large, z and x
    [
        [[[0.95, 0.05], [0.05, 0.95]], [[0.4, 0.6], [0.6, 0.4]]],
        [[[0.1, 0.9], [0.8, 0.2]], [[0.7, 0.3], [0.2, 0.8]]],
    ]
)
SYMBOLS = (0, 1, 1, 0)
POWER = 1.5


def _evidence(t, x, total, remembers):
    if t == len(SYMBOLS):
        return 1.0
    out = 0.0
    for new, z in itertools.product(range(2), range(2)):
        prior = (0.5 if t == 0 else MOVE[x, new]) * (0.3 if z else 0.7)
        seen = EMIT[int(total > 0.8), z, new, SYMBOLS[t]] ** POWER
        after = 0.5 * total + new + z if remembers else total
        out += prior * seen * _evidence(t + 1, new, after, remembers)
    return out


def test_discrete_states_constraints_and_a_model_that_remembers():
    """A guide that looks at the state, a site it leaves to the model, a power of the likelihood."""
    move, emit = jnp.asarray(MOVE, float), jnp.asarray(EMIT, float)

    def start(ctx):
        return jnp.int32(0), jnp.zeros(())

    def step(remembers):
        def run(ctx, state, t):
            last, total = state
            prior = jnp.where(t == 0, jnp.array([0.5, 0.5]), move[last])
            x = ctx.sample("x", ppl.Token(jnp.log(prior)))
            z = ctx.sample("z", dist.Bernoulli(0.3))
            ctx.sample("y", ppl.Token(jnp.log(emit[(total > 0.8).astype(int), z, x])))
            # The total tells pasts apart.
            return x, total * 0.5 + (x + z).astype(float) if remembers else total

        return run

    def guide(ctx, state, t):
        ctx.sample("x", ppl.Token(jnp.log(0.3 * move[state[0]] + 0.35)))

    for remembers in (False, True):
        model = ppl.StateSpace(start, step(remembers), 4)
        target = ppl.Target(model, (), {"y": jnp.array(SYMBOLS)}, POWER)

        def run(key, target=target):
            return MarginalFilter(6, ppl.Proposal(guide)).run(key, target).log_evidence

        levels = np.asarray(jax.jit(jax.vmap(run))(jax.random.split(KEY, 4000)), np.float64)
        assert abs(z(np.exp(levels) / _evidence(0, 0, 0.0, remembers), 1)) < 4


def test_errors_say_what_to_do():
    model = ppl.StateSpace(lambda ctx: jnp.zeros(()), lambda ctx, s, t: s, 2, done=lambda s: s > 0)
    with pytest.raises(ppl.ProgramError, match="use SMC"):
        MarginalFilter(4).run(KEY, model)
    with pytest.raises(ValueError, match="at least one"):
        MarginalFilter(0)
