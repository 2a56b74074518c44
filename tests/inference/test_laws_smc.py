"""Particle filters are properly weighted: resamplers, proposals, thresholds, by pairwise cover."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import tiny_models as tiny

from feynkac import inference, ppl
from feynkac.inference import SMC, SSP, Killing, Multinomial, Residual, Stratified, Systematic
from feynkac.ppl.laws.proper_weighting import weighting
from feynkac.ppl.laws.result import decide

KEY = jax.random.key(11)

# Every resampler bootstrap and guided; with every N, threshold, ending and size of factors.
# The first two columns and the guided parts of a model are structure: six compiled filters.
CASES = [
    (2, None, Multinomial, 1.0, tiny.MILD, True),
    (2, None, Residual, 0.5, tiny.HARSH, True),
    (2, None, Killing, 0.0, tiny.MILD, False),
    (2, None, None, 0.0, tiny.HARSH, False),
    (2, None, Systematic, 0.5, tiny.MILD, False),
    (4, None, Stratified, 0.5, tiny.MILD, False),
    (4, None, Systematic, 1.0, tiny.HARSH, False),
    (4, None, SSP, 1.0, tiny.MILD, True),
    (4, None, Killing, 1.0, tiny.HARSH, True),
    (4, None, Residual, 1.0, tiny.MILD, False),
    (1, tiny.BOTH, Systematic, 0.5, tiny.MILD, True),
    (1, tiny.BOTH, None, 0.0, tiny.HARSH, False),
    (4, tiny.BOTH, Multinomial, 0.5, tiny.HARSH, False),
    (4, tiny.BOTH, SSP, 0.5, tiny.MILD, False),
    (4, tiny.BOTH, None, 0.0, tiny.MILD, True),
    (4, tiny.BOTH, Stratified, 1.0, tiny.MILD, True),
    (2, tiny.STEP, Stratified, 1.0, tiny.HARSH, True),
    (2, tiny.STEP, Killing, 1.0, tiny.MILD, True),
    (2, tiny.STEP, Systematic, 1.0, tiny.MILD, False),
    (2, tiny.INIT, Residual, 1.0, tiny.MILD, False),
    (2, tiny.INIT, Multinomial, 1.0, tiny.HARSH, True),
]


@functools.cache
def posterior(harsh, reject):
    factors = tiny.HARSH if harsh else tiny.MILD
    return inference.exact.enumerate(tiny.text(factors, tiny.Ending(reject)))


def name(case):
    n, proposal, resampler, threshold, factors, reject = case
    parts = [proposal.step, proposal.init] if proposal else []
    guided = "+".join(w for w, p in zip(("step", "init"), parts, strict=False) if p is not None)
    return (
        f"{n}-{guided or 'bootstrap'}-{resampler.__name__ if resampler else 'never'}-{threshold}-"
        f"{'harsh' if factors is tiny.HARSH else 'mild'}-{'reject' if reject else 'keep'}"
    )


# A third of the cases in every run, all of them in CI.
SOME = [c if i % 3 == 0 else pytest.param(c, marks=pytest.mark.slow) for i, c in enumerate(CASES)]


@pytest.mark.parametrize("case", SOME, ids=[name(case) for case in CASES])
def test_properly_weighted(case):
    n, proposal, resampler, threshold, factors, reject = case
    smc = SMC(n, tiny.resampler(resampler, threshold), proposal)
    exact = posterior(factors is tiny.HARSH, reject)
    measure = weighting(smc, exact.target, exact)
    decide("proper weighting", measure, KEY, 2**13, "").check()


@pytest.mark.x64
@pytest.mark.slow
def test_partly_constrained():
    """Some instances of a site given, in steps that may not happen."""
    some = ppl.Partial(jnp.array([1, 0, 2]), jnp.array([False, False, True]))
    target = tiny.text(constraints={"token": some})
    ppl.laws.proper_weighting(KEY, SMC(2), target, runs=2**13).check()
    # Where the text is over by then, the constraint says nothing.
    over = ppl.Target(target.model, target.args)
    every = inference.exact.enumerate(over)
    tokens = np.asarray(every.choices["token"])
    agrees = ~np.asarray(every.happened["token"])[:, 2] | (tokens[:, 2] == 2)
    log_z = every.log_evidence + np.log(np.exp(every.log_probs)[agrees].sum())
    assert abs(inference.exact.enumerate(target).log_evidence - log_z) < 1e-5


@pytest.mark.slow
def test_a_thousand_particles():
    """Unbiased, and close to the posterior in one run."""
    exact = posterior(False, True)
    smc = SMC(1000, Systematic(), tiny.STEP)
    runs = 64

    @jax.jit
    def several(keys):
        def one(key):
            p = smc.run(key, exact.target)
            means = p.expectation(lambda c: jnp.concatenate([c["token"].ravel(), c["mood"][None]]))
            return p.log_evidence - exact.log_evidence, means

        return jax.vmap(one)(keys)

    log_ratio, means = map(np.asarray, several(jax.random.split(KEY, runs)))
    ratio = np.exp(log_ratio)
    assert abs(ratio.mean() - 1) < 4 * ratio.std(ddof=1) / np.sqrt(runs)
    assert ratio.std() < 0.1
    want = exact.expectation(lambda c: jnp.concatenate([c["token"].ravel(), c["mood"][None]]))
    error = means.std(0, ddof=1) / np.sqrt(runs)
    # Self-normalised: the bias is of order 1/N, far below the standard error of 64 runs.
    assert (np.abs(means.mean(0) - want) <= 4 * error).all()
    assert (np.abs(means - want).max(0) <= 5 * means.std(0, ddof=1)).all()
