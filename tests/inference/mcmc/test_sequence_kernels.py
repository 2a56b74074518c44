"""Suffix, block and multi-try moves on texts that end early; the power target."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import tiny_models as tiny

from feynkac import inference, ppl
from feynkac.inference import SMC, mcmc
from feynkac.inference.chains import MCMC
from feynkac.ppl.laws.invariance import OnTraces, moving
from feynkac.ppl.laws.proper_weighting import weighting
from feynkac.ppl.laws.result import decide

KEY = jax.random.key(43)
KERNELS = {
    "suffix": mcmc.Suffix(),
    "guided suffix": mcmc.Suffix(tiny.STEP),
    "block": mcmc.BlockMH(2),
    "multi-try": mcmc.MultiTry(mcmc.Suffix(tiny.STEP), 3),
}
LATER = [n for n in KERNELS if n != "suffix"]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in LATER else []) for n in KERNELS]
)
@pytest.mark.slow
def test_invariance(name):
    """Lengths vary, tokens have probability zero, and the end may be rejected."""
    for reject in (False, True):
        exact = inference.exact.enumerate(tiny.text(tiny.MILD, tiny.Ending(reject)))
        kernel = OnTraces(KERNELS[name], exact.target)
        decide(name, moving(kernel, exact, None, 2), KEY, 2**15, "").check()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["suffix", "guided suffix"])
def test_rejuvenation_keeps_weights_proper(name):
    exact = inference.exact.enumerate(tiny.text(tiny.MILD, tiny.Ending(True)))
    smc = SMC(2, tiny.resampler(inference.Systematic, 0.9), kernel=KERNELS[name])
    decide("rejuvenation", weighting(smc, exact.target, exact), KEY, 2**13, "").check()


FIXED = {"token": ppl.Partial(jnp.array([0, 1, 0]), jnp.array([False, True, False]))}


@pytest.mark.slow
def test_a_constrained_step_that_may_not_happen():
    exact = inference.exact.enumerate(tiny.text(constraints=FIXED))
    kernel = mcmc.Sequence([mcmc.Suffix(), mcmc.MH(ppl.select("token"))])
    measure = moving(OnTraces(kernel, exact.target), exact, None, 2)
    decide("constrained", measure, KEY, 2**15, "").check()


# Tokens: 0 ends the text. [previous, token]; the first follows 0.
ALPHA = 4.0
NEXT = np.array([[0.3, 0.36, 0.34], [0.85, 0.1, 0.05], [0.8, 0.15, 0.05]])
STEPS = 5


def _begin(ctx, alpha):
    return jnp.zeros((), jnp.int32), jnp.zeros((), bool)


def _write(ctx, state, t, alpha):
    law = ppl.Token(jnp.log(jnp.asarray(NEXT, float))[state[0]])
    token = ctx.sample("token", law)
    ctx.factor("power", (alpha - 1) * law.log_prob(token))
    return token, token == 0


def _sharper(ctx, state, t, alpha):
    ctx.sample("token", ppl.Token(alpha * jnp.log(jnp.asarray(NEXT, float))[state[0]]))


def _over(state):
    return state[1]


def codes(tokens, length=None):
    """A number a text; a text cut off before its end is another than the one that ends there."""
    tokens = np.asarray(tokens).astype(int)
    cut = 0 if length is None else (length < STEPS) & ((tokens == 0).argmax(1) >= length)
    return tokens @ 3 ** np.arange(STEPS) + 3**STEPS * np.asarray(cut)


def power():
    model = ppl.StateSpace(_begin, _write, STEPS, _over)
    return inference.exact.enumerate(ppl.Target(model, (jnp.asarray(ALPHA, float),)))


def distance(tokens, exact, length=None):
    """Total variation between the law of the tokens [n, steps] and the exact one."""
    p = np.zeros(2 * 3**STEPS)
    p[codes(exact.choices["token"])] = np.exp(exact.log_probs)
    q = np.bincount(codes(tokens, length), minlength=len(p)) / len(tokens)
    return 0.5 * np.abs(p - q).sum()


@pytest.mark.parametrize(
    "kernel",
    [mcmc.Suffix(), pytest.param(mcmc.SuffixMH(ppl.Proposal(_sharper)), marks=pytest.mark.slow)],
    ids=["model", "sharper"],
)
def test_power_sampling_reaches_its_target(kernel):
    exact = power()
    chains = MCMC(kernel, n_chains=2**11, n_samples=8, burn_in=25, thin=2).run(KEY, exact.target)
    assert chains.status
    tokens = np.asarray(chains.choices["token"]).reshape(-1, STEPS)
    assert distance(tokens, exact) < 0.02


def test_the_published_rule_does_not():
    """Proposals at most as long as the text, compared on their own length, and no index ratio.

    The rule as described for arXiv 2510.14901's code in one block: short texts win.
    """
    exact, rng, n = power(), np.random.default_rng(0), 2**13
    log_p = np.log(NEXT)
    sharp = NEXT**ALPHA / (NEXT**ALPHA).sum(1, keepdims=True)

    def write(tokens, start, limit, law):
        """New tokens from `start` to `limit`, fewer if an end comes before; and the length."""
        new, last = tokens.copy(), np.zeros(n, int)
        length, going = np.zeros(n, int), np.ones(n, bool)
        for t in range(STEPS):
            draw = (rng.random(n)[:, None] > law[last].cumsum(1)).sum(1).clip(max=2)
            fresh = going & (t >= start) & (t < limit)
            new[:, t] = np.where(fresh, draw, np.where(t < start, tokens[:, t], 0))
            going &= t < limit
            length += going
            last = new[:, t]
            going &= last != 0
        return new, length

    def score(tokens, start, stop, log_law):
        last, total = np.zeros(n, int), np.zeros(n)
        for t in range(STEPS):
            total += np.where((t >= start) & (t < stop), log_law[last, tokens[:, t]], 0)
            last = tokens[:, t]
        return total

    tokens, length = write(np.zeros((n, STEPS), int), 0, np.full(n, STEPS), sharp)
    for _ in range(40):
        m = (rng.random(n) * length).astype(int)
        new, new_length = write(tokens, m, length, sharp)
        parts = [
            (ALPHA * score(x, m, new_length, log_p), score(x, m, new_length, np.log(sharp)))
            for x in (new, tokens)
        ]
        log_ratio = (parts[0][0] - parts[0][1]) - (parts[1][0] - parts[1][1])
        accept = np.log(rng.random(n)) < log_ratio
        tokens = np.where(accept[:, None], new, tokens)
        length = np.where(accept, new_length, length)
    assert distance(tokens, exact, length) > 0.5
    exact_length = float(exact.expectation(lambda c: jnp.sum(jnp.cumprod(c["token"] != 0)) + 1))
    assert length.mean() < 1.1 < 1.3 < exact_length


@ppl.program
def no_steps(ctx):
    ctx.sample("k", ppl.dist.Bernoulli(probs=0.5))


@pytest.mark.parametrize("kernel", [mcmc.Suffix(), mcmc.BlockMH(2), mcmc.MultiTry()])
def test_a_model_without_steps(kernel):
    with pytest.raises(ppl.ProgramError, match=r"no steps.*\['k'\].*use MH"):
        jax.eval_shape(lambda key: kernel(key, ppl.Target(no_steps), no_steps.simulate(key)), KEY)


def test_arguments():
    with pytest.raises(ppl.ProgramError, match="no step program"):
        mcmc.Suffix(ppl.Proposal(init=no_steps))
    with pytest.raises(ValueError, match="at least one try, got 0"):
        mcmc.MultiTry(tries=0)
