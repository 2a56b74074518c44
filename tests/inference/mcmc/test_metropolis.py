"""Metropolis-Hastings with programs as proposals: asymmetric ones, steps and branches that go."""

import jax
import jax.numpy as jnp
import pytest
from oracles import tiny_models as tiny

from feynkac import inference, ppl
from feynkac.inference import SMC, mcmc
from feynkac.ppl import dist, laws
from feynkac.ppl.laws.invariance import OnTraces, moving
from feynkac.ppl.laws.proper_weighting import weighting
from feynkac.ppl.laws.result import decide

KEY = jax.random.key(47)
TURN = jnp.array([[0.1, 0.6, 0.3], [0.4, 0.2, 0.4], [0.7, 0.2, 0.1]])
BY_MOOD = jnp.array([0.0, 0.8, -0.5])


@ppl.program
def turn(ctx, choices, table, factors):
    """A new token by the old one, and by the mood, not symmetric."""
    ctx.sample(
        "token",
        ppl.Token(jnp.log(TURN)[choices["token"]] + jnp.where(choices["mood"] == 1, BY_MOOD, 0.0)),
    )


@ppl.program
def change_mood(ctx, choices, *args):
    last_is_one = choices["token"][2] == 1
    ctx.sample(
        "mood",
        dist.Bernoulli(
            probs=jnp.where(last_is_one, 0.8, jnp.where(choices["mood"] == 1, 0.5, 0.3))
        ),
    )


TOKENS = mcmc.Metropolis(ppl.vmap(turn, in_axes=({"mood": None, "token": 0}, None, None)))


@pytest.mark.slow
def test_steps_that_come_and_go():
    """A changed token may end the text or lengthen it: the rest is then drawn from the model."""
    third = {"token": ppl.Partial(jnp.array([0, 0, 1]), jnp.array([False, False, True]))}
    for reject, fixed in ((False, {}), (True, {}), (False, third)):
        exact = inference.exact.enumerate(tiny.text(tiny.MILD, tiny.Ending(reject), fixed))
        both = mcmc.Sequence([TOKENS, mcmc.Metropolis(change_mood)])
        decide(
            "tokens", moving(OnTraces(both, exact.target), exact, None, 2), KEY, 2**15, ""
        ).check()


@pytest.mark.slow
def test_rejuvenation_keeps_weights_proper():
    exact = inference.exact.enumerate(tiny.text(tiny.MILD, tiny.Ending(True)))
    smc = SMC(2, tiny.resampler(inference.Systematic, 0.9), kernel=TOKENS)
    decide("rejuvenation", weighting(smc, exact.target, exact), KEY, 2**13, "").check()


@ppl.program
def left(ctx, p):
    a = ctx.sample("a", dist.Bernoulli(probs=p))
    b = ctx.sample("b", dist.Bernoulli(probs=0.3))
    return a + 2 * b


@ppl.program
def right(ctx, p):
    return ctx.sample("a", dist.Bernoulli(probs=1 - p))


@ppl.program
def branching(ctx, p):
    which = ctx.sample("which", dist.Bernoulli(probs=0.4))
    value = ctx.call("part", ppl.cond(left, right), which == 1, p)
    ctx.factor("fit", jnp.array([0.0, 0.9, -0.7, 1.2])[value])


@ppl.program
def a_of_left(ctx, chance):
    ctx.sample("a", dist.Bernoulli(probs=chance))


@ppl.program
def under_true(ctx, chance):
    ctx.call("true", a_of_left, chance)


@ppl.program
def flip(ctx, choices, p):
    """The branch and one of its sites, the other left to the model."""
    which = ctx.sample("which", dist.Bernoulli(probs=jnp.where(choices["which"] == 1, 0.7, 0.3)))
    ctx.call(
        "part",
        under_true,
        jnp.where(choices["part"]["true"]["b"] == 1, 0.9, jnp.where(which == 1, 0.5, 0.2)),
    )


def test_branches_that_flip():
    target = ppl.Target(branching, (jnp.asarray(0.7, float),))
    laws.invariance(KEY, mcmc.Metropolis(flip), target, runs=2**15, steps=2).check()


@ppl.program
def plain(ctx, y):
    x = ctx.sample("x", dist.Normal(y, 1.0))
    k = ctx.sample("k", dist.Bernoulli(probs=0.5))
    ctx.sample("y", dist.Normal(jnp.where(k == 1, x, -x), 1.0))


def _moved(proposal, constraints):
    target = ppl.Target(plain, (0.0,), constraints)
    return jax.eval_shape(
        lambda key: mcmc.Metropolis(proposal)(key, target, plain.simulate(key, 0.0)), KEY
    )


@pytest.mark.parametrize(
    ("proposal", "message"),
    [
        (lambda ctx, choices, y: ctx.sample("z", dist.Normal(0, 1)), "'z', which is no site"),
        (lambda ctx, choices, y: ctx.sample("y", dist.Normal(0, 1)), "'y'.*constraints fix"),
        (lambda ctx, choices, y: choices["x"], "draws no site"),
        (lambda ctx, choices, y: ctx.factor("f", 1.0), "'f' is an observe or a factor"),
    ],
)
def test_errors(proposal, message):
    with pytest.raises(ppl.ProgramError, match=message):
        _moved(proposal, {"y": jnp.zeros(())})


def test_one_draw_for_steps_that_may_not_happen():
    target = tiny.text()
    kernel = mcmc.Metropolis(
        lambda ctx, choices, *args: ctx.sample("token", ppl.Token(jnp.log(TURN)[choices["token"]]))
    )
    with pytest.raises(
        ppl.ProgramError, match=r"all instances \(3,\) of 'token' at once.*ppl.vmap"
    ):
        jax.eval_shape(
            lambda key: kernel(key, target, target.model.simulate(key, *target.args)), KEY
        )
