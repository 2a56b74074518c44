"""Inference inside programs: densities are unbiased, whatever uses them is properly weighted."""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import tiny_models as tiny

from feynkac import inference, ppl
from feynkac.inference import SMC, Importance
from feynkac.ppl import dist, laws
from feynkac.ppl.laws.proper_weighting import weighting
from feynkac.ppl.laws.result import decide, standardized
from feynkac.ppl.laws.statistics import batches, moments

KEY = jax.random.key(37)
TABLE = np.array([[0.9, 0.1, 0.0], [0.25, 0.45, 0.3]])


SLOW = pytest.mark.slow


@pytest.mark.parametrize("index", [0, *(pytest.param(i, marks=SLOW) for i in range(1, 6))])
@pytest.mark.slow
def test_densities_of_a_filter(index):
    """Under adaptive resampling, with steps that may not happen and runs that die."""
    kind, proposal = type(tiny.RESAMPLERS[index]), tiny.BOTH if index % 2 else None
    target = tiny.text(tiny.MILD, tiny.Ending(proposal is None), length=2)
    smc = SMC(3, tiny.resampler(kind, 0.9), proposal)
    laws.nested_density(KEY, smc, target, runs=2**14).check()


@ppl.program
def inner(ctx, p, table):
    z = ctx.sample("z", dist.Bernoulli(probs=p))
    x = ctx.sample("x", ppl.Token(jnp.log(table[z])))
    # With p = 0.2 most runs of two particles die.
    ctx.factor("forbidden", jnp.where((z == 0) & (x == 0), -jnp.inf, jnp.where(x == 1, 0.4, 0.0)))


@ppl.program
def hierarchy(ctx, table):
    """A posterior, as two weighted draws approximate it, as the law of a latent."""
    high = ctx.sample("high", dist.Bernoulli(probs=0.6))
    target = ppl.Target(inner, (jnp.where(high == 1, 0.7, 0.2), table))
    w = ctx.sample("w", ppl.normalize(target, Importance(2)))
    ctx.factor("seen", jnp.where(w["x"] == 2, 0.8, jnp.where(w["z"] == 1, -0.5, 0.1)))


def two_particles(p):
    """The law of `normalize(inner, Importance(2))`, from all pairs; dead runs are missing."""
    law = np.zeros((2, 3))
    values = list(itertools.product(range(2), range(3)))
    prior = {(z, x): (p if z else 1 - p) * TABLE[z, x] for z, x in values}
    weight = {v: 0.0 if v == (0, 0) else np.exp(0.4 * (v[1] == 1)) for v in values}
    for a, b in itertools.product(values, repeat=2):
        both = weight[a] + weight[b]
        for v in (a, b) if both else ():
            law[v] += prior[a] * prior[b] * weight[v] / both
    return law


@SLOW
def test_latent_with_an_estimated_law():
    table = jnp.asarray(TABLE, float)
    joint = np.stack([0.4 * two_particles(0.2), 0.6 * two_particles(0.7)])
    seen = np.exp([[0.1, 0.1, 0.8], [-0.5, -0.5, 0.8]])
    exact = joint * seen

    def f(c):
        return jax.nn.one_hot(6 * c["high"] + 3 * c["w"]["z"] + c["w"]["x"], 12)

    fixed = {"w": {"z": jnp.int32(1), "x": jnp.int32(2)}}

    class Measured(eqx.Module):
        table: jax.Array

        def __call__(self, key):
            keys = jax.random.split(key, 3)
            trace, log_w = hierarchy.generate(keys[0], {}, self.table)
            given, log_w_given = hierarchy.generate(keys[1], fixed, self.table)
            choices = {"high": jnp.int32(0), "w": {"z": jnp.int32(0), "x": jnp.int32(1)}}
            log_p, _ = hierarchy.assess(choices, self.table, key=keys[2])
            free = jnp.exp(log_w) * f(trace.choices)
            free = jnp.where(jnp.isposinf(trace.log_probs["w"]), jnp.zeros_like(free), free)
            fixed_w = jnp.exp(log_w_given) * jax.nn.one_hot(given.choices["high"], 2)
            return jnp.concatenate([free, fixed_w, jnp.exp(log_p)[None]])

    want = np.concatenate([exact.ravel(), exact[:, 1, 2], exact[0, 0, 1][None]])

    def measure(key, runs):
        mean, error, n = moments(batches(Measured(table), key, runs))
        z = standardized(mean - want, error)
        return {str(i): float(v) for i, v in enumerate(z) if want[i] * n > 50}, []

    result = decide("latent", measure, KEY, 2**15, "").check()
    assert len(result.z) > 10


@ppl.program
def block(ctx, last, y, table):
    z = ctx.sample("z", dist.Bernoulli(probs=jnp.where(last == 1, 0.7, 0.4)))
    x = ctx.sample("x", ppl.Token(jnp.log(table[z])))
    ctx.observe("y", dist.Bernoulli(probs=jnp.array([0.0, 0.3, 0.9])[x]), y)
    return z


def _outer_step(ctx, state, t, table, ys):
    return ctx.call("block", block, state, ys[t], table)


def _start(ctx, table, ys):
    return jnp.zeros((), jnp.int32)


def _inferred_step(ctx, state, t, table, ys):
    ctx.sample("block", ppl.normalize(ppl.Target(block, (state, ys[t], table)), Importance(2)))


@SLOW
def test_inference_as_the_proposal_of_a_filter():
    model = ppl.StateSpace(_start, _outer_step, 2)
    target = ppl.Target(model, (jnp.asarray(TABLE, float), jnp.array([1, 0])))
    smc = SMC(2, inference.Systematic(ess_threshold=1.0), ppl.Proposal(_inferred_step))
    laws.proper_weighting(KEY, smc, target, runs=2**13).check()


@ppl.program
def graded(ctx, table, factors):
    """Writes a text with a filter's help, then grades it."""
    sharp = ctx.sample("sharp", dist.Bernoulli(probs=0.5))
    model = tiny.text(factors, tiny.Ending(True), length=2).model
    end = ctx.call("text", model, table, factors)
    ctx.factor("grade", jnp.where((end["last"] == 0) & (sharp == 1), 0.7, -0.3))


def _filtered(ctx, smc, table, factors):
    model = tiny.text(factors, tiny.Ending(True), length=2).model
    ctx.sample("text", ppl.normalize(ppl.Target(model, (table, factors)), smc))


@SLOW
def test_a_filter_as_the_proposal_of_importance_sampling():
    inner_smc = SMC(2, tiny.resampler(inference.SSP, 0.9), tiny.STEP)
    proposal = ppl.bind(ppl.Proposal(init=_filtered), inner_smc)
    target = ppl.Target(graded, tiny.text().args)
    laws.proper_weighting(KEY, Importance(2, proposal), target, runs=2**13).check()


@ppl.program
def pair(ctx, p, table):
    z = ctx.sample("z", dist.Bernoulli(probs=p))
    ctx.sample("x", ppl.Token(jnp.log(table[z])))


def _emit(ctx, state, t, table, ys):
    z = ctx.sample("z", dist.Bernoulli(probs=jnp.where(state == 1, 0.8, 0.3)))
    ctx.sample("x", ppl.Token(jnp.log(table[z])))
    return z


class Densities(eqx.Module):
    """For each value w of one estimate, and 1/w where it is drawn."""

    law: ppl.EstimatedDistribution
    values: dict

    def __call__(self, key):
        key_draw, key_estimate = jax.random.split(key)
        x, log_w = self.law.random_weighted(key_draw)
        hit = jax.vmap(lambda value: jnp.all(x["x"] == value))(self.values["x"])
        inverse = jnp.where(hit, jnp.exp(-log_w), 0.0)
        keys = jax.random.split(key_estimate, len(self.values["x"]))
        w = jnp.exp(jax.vmap(self.law.estimate_logpdf)(keys, self.values))
        return jnp.concatenate([inverse, hit.astype(float), w])


@SLOW
@pytest.mark.parametrize("filtered", [False, True])
def test_marginal(filtered):
    # No run can die: a dead one has no 1/w, so that E[1/w | x] = P(Z-hat > 0) / p(x).
    table = jnp.asarray(0.9 * TABLE + 0.1 / 3, float)
    if filtered:
        model = ppl.StateSpace(_start, _emit, 3)
        target = ppl.Target(model, (table, jnp.zeros(())))
        algorithm = SMC(2, tiny.resampler(inference.Residual, 0.9))
    else:
        target, algorithm = ppl.Target(pair, (jnp.asarray(0.35, float), table)), Importance(2)
    exact = inference.exact.enumerate(target)
    x = np.asarray(exact.choices["x"]).reshape(len(exact.log_probs), -1)
    values, which = np.unique(x, axis=0, return_inverse=True)
    p = np.bincount(which.ravel(), np.exp(exact.log_probs))
    values = jnp.asarray(values if filtered else values[:, 0])
    one = Densities(ppl.marginal(target, ppl.select("x"), algorithm), {"x": values})

    def measure(key, runs):
        mean, error, _ = moments(batches(one, key, runs))
        z = standardized(mean - np.concatenate([np.ones_like(p), p, p]), error, 1.0)
        enough = np.tile(p * runs > 50, 3)
        return {str(i): float(z[i]) for i in np.flatnonzero(enough)}, []

    result = decide("marginal", measure, KEY, 2**15, "").check()
    assert len(result.z) >= 3 * len(p) * 0.6


@ppl.program
def latent_marginal(ctx, table):
    p = ctx.sample("p", dist.Bernoulli(probs=0.5))
    q = ctx.sample("q", dist.Bernoulli(probs=0.4))
    rate = jnp.where(p == 1, 0.8, 0.2)
    law = ppl.marginal(ppl.Target(pair, (rate, table)), ppl.select("x"), Importance(1))
    x = ctx.sample("m", law)["x"]
    ctx.factor("seen", jnp.where(x == 1, 0.9, 0.0) + jnp.where(q == p, 0.5, 0.0))


@ppl.program
def oracle(ctx, table):
    p = ctx.sample("p", dist.Bernoulli(probs=0.5))
    q = ctx.sample("q", dist.Bernoulli(probs=0.4))
    rate = jnp.where(p == 1, 0.8, 0.2)
    x = ctx.sample("x", ppl.Token(jnp.log((1 - rate) * table[0] + rate * table[1])))
    ctx.factor("seen", jnp.where(x == 1, 0.9, 0.0) + jnp.where(q == p, 0.5, 0.0))


class Moves(eqx.Module):
    """Weighted prior draws, moved: properly weighted if the kernel is invariant."""

    kernel: inference.Kernel
    redraw: bool = eqx.field(static=True, default=False)

    def run(self, key, target):
        def one(key):
            program = ppl.Target(latent_marginal, target.args)
            key_draw, *keys = jax.random.split(key, 7)
            trace = program.model.simulate(key_draw, *target.args)
            log_w = trace.log_weight
            for k in keys:
                if self.redraw:  # the defective form: the current state's estimate is made anew
                    given = program.joined(trace.choices)
                    fresh = program.model.run(jax.random.fold_in(k, 7), given, target.args)
                    trace = fresh.trace()
                trace = self.kernel(k, program, trace)
            return log_w, {**trace.choices, "x": trace.choices["m"]["x"]}

        log_w, choices = jax.vmap(one)(jax.random.split(key, 4))
        del choices["m"]
        return Draws(log_w, choices, jax.nn.logsumexp(log_w) - jnp.log(4.0))


class Draws(eqx.Module):
    log_weights: jax.Array
    choices: dict
    log_evidence: jax.Array


@functools.cache
def exact_oracle():
    return inference.exact.enumerate(ppl.Target(oracle, (jnp.asarray(TABLE, float),)))


@SLOW
@pytest.mark.parametrize("redraw", [False, True])
def test_metropolis_hastings_is_pseudo_marginal(redraw):
    """Estimates of the current state are kept; making them anew is rejected."""
    exact = exact_oracle()
    moves = Moves(inference.MH(ppl.select("p", "q")), redraw)
    measure = weighting(moves, exact.target, exact)
    result = decide("pseudo-marginal", measure, KEY, 2**15, "")
    assert result.ok is not redraw, result
