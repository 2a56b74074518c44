"""Annealing, twist and kernel in one filter: the law, and the real language model."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import tiny_models as tiny

from feynkac import inference, models, ppl
from feynkac.inference import SMC, Systematic
from feynkac.inference.annealing import AdaptiveTempering, Ramp
from feynkac.inference.mcmc import Every, Repeat, Suffix
from feynkac.ppl.laws.proper_weighting import weighting
from feynkac.ppl.laws.result import decide

KEY = jax.random.key(8)


@pytest.mark.slow
def test_together_they_keep_the_target():
    twist = ppl.Twist(lambda state, t, *args: 0.5 * jnp.cos(state["last"].astype(float)))
    smc = SMC(
        3,
        Systematic(ess_threshold=0.9),
        tiny.STEP,
        twist=twist,
        annealing=AdaptiveTempering(0.8),
        kernel=Every(Repeat(Suffix(), 2), 2),
    )
    exact = inference.exact.enumerate(tiny.text(tiny.MILD, tiny.Ending(True)))
    decide("proper weighting", weighting(smc, exact.target, exact), KEY, 2**13, "").check()
    rates = np.asarray(smc.run(KEY, exact.target).acceptance)
    assert np.isnan(rates[[0, 2]]).all() and np.isfinite(rates[1])


@pytest.mark.slow
def test_on_the_real_language_model():
    """Texts with many words on s: a ramp, a twist by the next logits, suffix moves."""
    lm = models.load("smollm2-135m-instruct")
    prompt = lm.prompt([{"role": "user", "content": "Write one short sentence about the sea."}])
    reward = 1.5 * models.token_table(lm, lambda text: float(text[:2] in (" s", " S")))
    length = 12

    def init(ctx, lm, prompt, reward):
        return models.Text.start(lm, prompt, length)

    def step(ctx, text, t, lm, prompt, reward):
        token = ctx.sample("token", ppl.Token(text.logits))
        ctx.factor("reward", reward[token])
        return text.write(lm, prompt, token, t)

    def ahead(text, t, lm, prompt, reward):
        """The expected reward factor of the next token."""
        return jax.nn.logsumexp(jax.nn.log_softmax(text.logits) + reward)

    story = ppl.StateSpace(init, step, length, done=models.ended)
    story = ppl.bind(story, lm, prompt, reward)
    smc = SMC(
        8,
        Systematic(ess_threshold=0.7),
        twist=ppl.Twist(ahead),
        annealing=Ramp(0.5),
        kernel=Every(Repeat(Suffix(), 2), 6),
    )
    began = time.perf_counter()
    particles = jax.block_until_ready(smc.run(KEY, story, throw=True))
    print(f"{time.perf_counter() - began:.1f} s")
    plain = SMC(8, None).run(KEY, models.generation(lm, prompt, length))

    def words(particles):
        tokens = np.asarray(particles.choices["token"])
        written = np.arange(length) < np.asarray(particles.lengths)[:, None]
        return np.sum((np.asarray(reward)[tokens] > 0) & written, axis=1)

    assert np.asarray(particles.weights) @ words(particles) > words(plain).mean()
    assert np.isfinite(particles.acceptance[5]) and np.isfinite(particles.log_evidence)
    for reading in models.texts(lm, particles)[:4]:
        print(f"{reading.probability:.2f} {reading.text!r}")
