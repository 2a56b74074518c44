"""Powers and products of models over whole sequences, by enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac import inference, ppl
from feynkac.ppl import dist
from feynkac.ppl.errors import EstimatedDensity
from feynkac.ppl.laws.proper_weighting import weighting
from feynkac.ppl.laws.result import decide

KEY = jax.random.key(3)
END, LENGTH = 0, 4
FIRST = np.array([[0.1, 0.6, 0.3], [0.5, 0.1, 0.4], [0.3, 0.7, 0.0]])
SECOND = np.array([[0.3, 0.2, 0.5], [0.05, 0.9, 0.05], [0.6, 0.1, 0.3]])


def _init(ctx, table):
    return {"last": jnp.zeros((), jnp.int32), "ended": jnp.zeros((), bool)}


def _step(ctx, state, t, table):
    token = ctx.sample("token", ppl.Token(jnp.log(table[state["last"]])))
    return {"last": token, "ended": token == END}


def text(table):
    model = ppl.StateSpace(_init, _step, LENGTH, lambda state: state["ended"])
    return ppl.bind(model, jnp.asarray(table, float))


def codes(choices):
    return np.asarray(choices["token"]) @ 3 ** np.arange(LENGTH)


def law(target):
    """Probability of every text by its code."""
    exact = inference.exact.enumerate(target)
    probs = np.zeros(3**LENGTH)
    probs[codes(exact.choices)] = np.exp(exact.log_probs)
    return probs


def variation(p, q):
    return 0.5 * np.abs(p - q).sum()


EXPONENTS = [1.5, 0.7]


def joint():
    return ppl.product((text(FIRST), text(SECOND)), jnp.array(EXPONENTS))


def _locally(ctx, states, t):
    tables = (FIRST, SECOND)
    logits = sum(
        e * jnp.log(jnp.asarray(table, float))[s["last"]]
        for e, table, s in zip(EXPONENTS, tables, states, strict=True)
    )
    ctx.sample("token", ppl.Token(logits))


def test_the_density_is_the_product_over_the_whole_text():
    p, q, both = law(text(FIRST)), law(text(SECOND)), law(joint())
    want = p ** EXPONENTS[0] * q ** EXPONENTS[1]
    np.testing.assert_allclose(both, want / want.sum(), atol=1e-6)
    exact = inference.exact.enumerate(joint())
    np.testing.assert_allclose(exact.log_evidence, np.log(want.sum()), atol=1e-5)


def test_normalised_step_by_step_it_is_another_law():
    def step(ctx, state, t):
        logits = sum(
            e * jnp.log(jnp.asarray(table, float))[state["last"]]
            for e, table in zip(EXPONENTS, (FIRST, SECOND), strict=True)
        )
        token = ctx.sample("token", ppl.Token(logits))
        return {"last": token, "ended": token == END}

    def init(ctx):
        return _init(ctx, None)

    local = ppl.StateSpace(init, step, LENGTH, lambda state: state["ended"])
    assert variation(law(local), law(joint())) > 0.1
    sharp = law(inference.Power(3.0)(text(FIRST)))
    table = FIRST**3 / (FIRST**3).sum(1, keepdims=True)
    assert variation(law(text(table)), sharp) > 0.1
    want = law(text(FIRST)) ** 3
    np.testing.assert_allclose(sharp, want / want.sum(), atol=1e-6)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.slow
def test_filters_are_properly_weighted(guided):
    """With the step-wise product proposed, the normaliser Z_t is the weight's increment."""
    proposal = ppl.Proposal(_locally) if guided else None
    smc = inference.SMC(3, inference.SSP(ess_threshold=0.9), proposal)
    exact = inference.exact.enumerate(joint())
    decide("proper weighting", weighting(smc, exact.target, exact), KEY, 2**13, "").check()
    if guided:
        kept = inference.SMC(1, None, proposal).run(KEY, exact.target)
        last, total = 0, 0.0
        for token in np.asarray(kept.choices["token"])[0][: int(kept.lengths[0])]:
            total += np.log(np.sum(FIRST[last] ** EXPONENTS[0] * SECOND[last] ** EXPONENTS[1]))
            last = token
        np.testing.assert_allclose(kept.log_weights[0], total, rtol=1e-5)


def test_of_programs_and_of_observations():
    def one(ctx, scale, data):
        x = ctx.sample("x", dist.Normal(0.0, scale))
        ctx.observe("y", dist.Normal(x, 1.0), data)

    def two(ctx, scale, data):
        ctx.sample("x", dist.Normal(1.0, 2.0 * scale))

    both, args, x = ppl.product((one, two), [0.5, 2.0]), (1.5, 0.3), jnp.float32(0.7)
    got, _ = both.assess({"x": x}, *args)
    parts = [ppl.program(f).assess({"x": x}, *args)[0] for f in (one, two)]
    np.testing.assert_allclose(got, 0.5 * parts[0] + 2.0 * parts[1], rtol=1e-6)
    target = ppl.Target(both, args, {"x": x})
    np.testing.assert_allclose(
        inference.Importance(2).run(KEY, target).log_evidence, got, rtol=1e-6
    )


def test_impossible_for_one_is_impossible():
    contrast = ppl.product((text(SECOND), text(FIRST)), [1.5, -0.5])
    particles = inference.SMC(64).run(KEY, contrast)
    probs = law(text(FIRST))
    alive = ~np.isneginf(particles.log_weights)
    assert not alive.all() and np.all(probs[codes(particles.choices)[alive]] > 0)


def test_errors_say_what_to_do():
    with pytest.raises(ppl.ProgramError, match="one exponent for each"):
        ppl.product((text(FIRST), text(SECOND)), [1.0])
    with pytest.raises(ppl.ProgramError, match="make them one"):
        short = ppl.bind(ppl.StateSpace(_init, _step, 2), jnp.asarray(FIRST))
        ppl.product((text(FIRST), short), [1.0, 1.0])
    with pytest.raises(ppl.ProgramError, match="not of both"):
        ppl.product((text(FIRST), lambda ctx: None), [1.0, 1.0])
    with pytest.raises(ppl.ProgramError, match="same sites"):

        def named(ctx, state, t, table):
            word = ctx.sample("word", ppl.Token(jnp.log(table[state["last"]])))
            return {"last": word, "ended": word == END}

        other = ppl.bind(ppl.StateSpace(_init, named, LENGTH), jnp.asarray(FIRST, float))
        inference.SMC(2).run(KEY, ppl.product((text(FIRST), other), [1.0, 1.0]))
    with pytest.raises(ppl.ProgramError, match="no marginal"):
        ppl.marginal(ppl.power(text(FIRST), 2.0), ppl.select("token"), inference.Importance(2))


def test_estimated_densities_have_no_powers():
    @ppl.program
    def hidden(ctx):
        z = ctx.sample("z", dist.Normal(0.0, 1.0))
        ctx.sample("y", dist.Normal(z, 1.0))

    summed = ppl.marginal(ppl.Target(hidden), ppl.select("y"), inference.Importance(4))

    @ppl.program
    def outer(ctx):
        ctx.sample("y", summed)

    for model in (ppl.power(outer, 2.0), ppl.product((outer, outer), [1.0, 1.0])):
        with pytest.raises(EstimatedDensity, match="power of an estimate is biased"):
            model.simulate(KEY)
