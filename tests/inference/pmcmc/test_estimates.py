"""Particle MCMC where densities are only estimated: estimates are kept, and the law is exact.

The same law with the inner latent summed out by hand is enumerated.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import tiny_models as tiny

from feynkac import inference, ppl
from feynkac.inference import SMC, Importance, Systematic
from feynkac.inference.mcmc.transition import written
from feynkac.inference.pmcmc import PIMH, PMMH, SMC2, Parametric, ParticleGibbs
from feynkac.ppl import dist
from feynkac.ppl.errors import EstimatedDensity
from feynkac.ppl.laws.proper_weighting import weighting
from feynkac.ppl.laws.result import decide

KEY = jax.random.key(109)
TABLE = np.array([[0.9, 0.1, 0.0], [0.25, 0.45, 0.3]])
TABLE_ARG = (jnp.asarray(TABLE, float),)
SEEN = jnp.array([1, 2])
RUNS = 2**13


@ppl.program
def pair(ctx, p, table):
    z = ctx.sample("z", dist.Bernoulli(probs=p))
    ctx.sample("x", ppl.Token(jnp.log(table[z])))


def _estimated(ctx, name, rate, table):
    law = ppl.marginal(ppl.Target(pair, (rate, table)), ppl.select("x"), Importance(1))
    return ctx.sample(name, law)["x"]


def _summed(ctx, name, rate, table):
    return ctx.sample(name, ppl.Token(jnp.log((1 - rate) * table[0] + rate * table[1])))


def _start(ctx, table):
    return jnp.zeros((), jnp.int32)


def _step(draw):
    """A bit, a token with an inner latent, and such a token observed."""

    def step(ctx, state, t, table):
        s = ctx.sample("s", dist.Bernoulli(probs=jnp.where(state == 1, 0.7, 0.3)))
        x = draw(ctx, "x", jnp.where(s == 1, 0.8, 0.2), table)
        draw(ctx, "o", jnp.where(s == state, 0.4, 0.6) + 0.3 * (x == 1).astype(float), table)
        ctx.factor("fit", jnp.where(x == 1, 0.6, 0.0))
        return s

    return step


@ppl.program
def _guess(ctx):
    ctx.sample("x", ppl.Token(jnp.log(jnp.array([0.3, 0.4, 0.3]))))


def _guide(ctx, state, t, table):
    ctx.call("x", _guess)


ESTIMATED = ppl.Target(ppl.StateSpace(_start, _step(_estimated), 2), TABLE_ARG, {"o": {"x": SEEN}})
SUMMED = ppl.Target(ppl.StateSpace(_start, _step(_summed), 2), TABLE_ARG, {"o": SEEN})


@functools.cache
def posterior():
    return inference.exact.enumerate(SUMMED)


class Draws(eqx.Module):
    log_weights: jax.Array
    choices: dict
    log_evidence: jax.Array


def drawn(log_w, choices):
    """As of the oracle."""
    plain = {k: x["x"] if isinstance(x, dict) else x for k, x in choices.items()}
    return Draws(log_w, plain, jax.nn.logsumexp(log_w) - jnp.log(1.0 * len(log_w)))


class Moves(eqx.Module):
    """Weighted prior draws, moved: properly weighted if the kernel is invariant."""

    kernel: inference.Kernel
    redraw: jax.Array  # the defective form: the current estimates are made anew

    def run(self, key, target):
        model = ESTIMATED.model
        key_draw, key_moves = jax.random.split(key)

        def move(trace, key):
            given = ESTIMATED.joined(trace.choices)
            fresh = model.run(jax.random.fold_in(key, 7), given, target.args).trace()
            trace = jax.tree.map(lambda a, b: jnp.where(self.redraw, a, b), written(fresh), trace)
            return self.kernel(key, ESTIMATED, trace), None

        trace, log_w = model.generate(key_draw, ESTIMATED.constraints, *target.args)
        trace, _ = jax.lax.scan(move, written(trace), jax.random.split(key_moves, 3))
        return drawn(log_w[None], jax.tree.map(lambda x: x[None], trace.choices))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "redraw"), [(ParticleGibbs, False), (ParticleGibbs, True), (PIMH, False)]
)
def test_estimates_are_kept(kind, redraw):
    kernel = kind(SMC(2, tiny.resampler(Systematic, 0.9), ppl.Proposal(_guide)))
    measure = weighting(Moves(kernel, jnp.asarray(redraw)), SUMMED, posterior())
    result = decide("pseudo-marginal", measure, KEY, RUNS, "")
    assert result.ok is not redraw, result


def _params(draw):
    @ppl.program
    def params(ctx, table):
        p = ctx.sample("p", dist.Bernoulli(probs=0.4))
        rate = jnp.where(p == 1, 0.8, 0.2)
        x = draw(ctx, "m", rate, table)
        draw(ctx, "y", 1 - rate, table)
        return p, x

    return params


def _given_start(ctx, theta, table):
    ctx.factor("first", jnp.where(theta[0] == 1, 0.3, -0.2))
    return theta[1]


def _given_step(draw):
    def step(ctx, state, t, theta, table):
        s = ctx.sample("s", dist.Bernoulli(probs=jnp.where(theta[0] == 1, 0.7, 0.3)))
        draw(ctx, "o", jnp.where(state == s, 0.3, 0.8), table)
        return s

    return step


def _flip(ctx, params):
    ctx.sample("p", dist.Bernoulli(probs=jnp.where(params["p"] == 1, 0.3, 0.8)))


@ppl.program
def _whole(ctx, table):
    theta = _params(_summed)(ctx, table)
    state = _given_start(ctx, theta, table)
    return theta, state


def _whole_step(ctx, state, t, table):
    theta, last = state
    return theta, _given_step(_summed)(ctx, last, t, theta, table)


class Joint(eqx.Module):
    """SMC^2 with parameters and observations whose densities are estimated."""

    smc2: SMC2

    def run(self, key, target):
        params = ppl.Target(_params(_estimated), target.args, {"y": {"x": jnp.int32(1)}})
        model = ppl.StateSpace(_given_start, _given_step(_estimated), 2)
        out = self.smc2.run(key, Parametric(params, model, target.args, {"o": {"x": SEEN}}))
        return drawn(out.log_weights, out.choices)


@pytest.mark.slow
def test_parameters_with_estimated_densities():
    target = ppl.Target(
        ppl.StateSpace(_whole, _whole_step, 2), TABLE_ARG, {"y": jnp.int32(1), "o": SEEN}
    )
    smc2 = SMC2(3, PMMH(SMC(2, tiny.resampler(Systematic, 1.0)), _flip), Systematic())
    exact = inference.exact.enumerate(target)
    decide("", weighting(Joint(smc2), target, exact), KEY, RUNS, "").check()


def test_other_pasts_are_refused():
    trace, _ = ESTIMATED.model.generate(KEY, ESTIMATED.constraints, *TABLE_ARG)
    for kind in ({"ancestor_sampling": True}, {"backward_sampling": True}):
        with pytest.raises(ppl.ProgramError, match="without them and with more particles"):
            ParticleGibbs(SMC(2), **kind)(KEY, ESTIMATED, trace)


def test_a_conditional_run_does_not_redraw_the_estimates_of_data():
    choices = SMC(2).run(KEY, SUMMED).choices
    some = jax.tree.map(lambda x: x[0], {**choices, "x": {"x": choices["x"]}})
    with pytest.raises(EstimatedDensity, match="constrained site 'o' .*ParticleGibbs"):
        SMC(2).run_conditional(KEY, ESTIMATED, some)
    free = ppl.Target(ESTIMATED.model, TABLE_ARG, {"s": some["s"]})
    rest = {"x": some["x"], "o": {"x": jnp.array([1, 1])}}  # possible whatever is estimated
    assert SMC(2).run_conditional(KEY, free, rest).status
