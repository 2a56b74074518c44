"""Changed models against their laws by hand, and a hot start as a proposal."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac import inference, models, ppl
from feynkac.models.finite import MarkovLanguageModel, MarkovLM
from feynkac.models.language import random_llama
from feynkac.models.language.delimiters import delimiter_table
from feynkac.models.language.interventions import (
    Changed,
    ForcedEnd,
    ForcedWait,
    StopStrings,
    Temperatures,
    hotter,
)

EOS, T, WAIT = 0, 5, 2
TABLE = np.array([[0.1, 0.5, 0.4], [0.3, 0.5, 0.2], [0.25, 0.35, 0.4]])
LM = MarkovLanguageModel(MarkovLM(jnp.log(TABLE[0]), jnp.log(TABLE), EOS))
STOPS = StopStrings(delimiter_table(models.Vocabulary([b"", b"a", b"ba"], EOS), ["ab", "baa"]))
HEAT = [2.0, 0.5]


def ends_after_three(text, row):
    return np.eye(3)[EOS] if len(text) >= 3 else row


def waits(text, row):
    if len(text) < 3 and text.count(WAIT) < 2:
        return row + row[EOS] * (np.eye(3)[WAIT] - np.eye(3)[EOS])
    return row


def stops(text, row):
    raw = "".join(["", "a", "ba"][token] for token in text)
    return np.eye(3)[EOS] if "ab" in raw or "baa" in raw else row


def heated(text, row):
    row = row ** (1 / HEAT[min(len(text), 1)])
    return row / row.sum()


def both(text, row):
    return ends_after_three(text, stops(text, row))


LAWS = {
    "end": (ForcedEnd(3), ends_after_three),
    "wait": (ForcedWait(WAIT, least=3, times=2), waits),
    "stop": (STOPS, stops),
    "heat": (Temperatures(HEAT), heated),
}


@pytest.mark.parametrize("name", LAWS)
def test_the_law_of_a_rule(name):
    """Every text of five tokens: the conditionals by advancing, and by replay."""
    rule, law = LAWS[name]
    lm = Changed(LM, rule)
    texts = np.array([(*t, EOS) for t in itertools.product([1, WAIT], repeat=T - 1)], np.int32)
    states = _replayed(lm, lm.prompt([1]), jnp.asarray(texts))
    for text, log_probs, logits in zip(texts, *map(np.asarray, states), strict=True):
        for t in range(T):
            row = law(text[:t].tolist(), TABLE[text[t - 1] if t else 1])
            with np.errstate(divide="ignore"):
                np.testing.assert_allclose(jax.nn.softmax(logits[t]), row, atol=1e-5)
                np.testing.assert_allclose(log_probs[t], np.log(row[text[t]]), atol=1e-5)


@eqx.filter_jit
def _replayed(lm, prefix, texts):
    def one(text):
        counts = jnp.arange(T, dtype=jnp.int32)
        states = jax.vmap(lambda n: lm.replay(prefix, text, n, T).logits)(counts)
        return lm.log_probs(prefix, text), states

    return jax.vmap(one)(texts)


def test_rules_compose_and_generate():
    lm = Changed(Changed(LM, STOPS), ForcedEnd(3))
    exact = inference.exact.enumerate(models.generation(lm, [1], 4, at_length=ppl.Reject()))
    assert np.isclose(exact.log_evidence, 0.0, atol=1e-5)
    for row, log_prob in zip(np.asarray(exact.choices["token"]), exact.log_probs, strict=True):
        text = row[: row.tolist().index(EOS) + 1].tolist()
        path = zip([1, *text], text, strict=False)
        want = sum(
            np.log(both(text[:t], TABLE[before])[token]) for t, (before, token) in enumerate(path)
        )
        np.testing.assert_allclose(log_prob, want, atol=1e-5)


@pytest.mark.slow
def test_a_changed_model_waits_with_its_base():
    """A slot that is not written leaves cache and memory as they were."""
    lm = Changed(random_llama(jax.random.key(0), 5, d=8, heads=2), ForcedEnd(2))
    prefix = lm.prompt([1, 2])

    @eqx.filter_jit
    def run(lm, prefix, write):
        def step(state, inputs):
            token, slot, write = inputs
            return lm.advance(prefix, state, token, slot, write), None

        inputs = jnp.array([3, 4, 1, 2]), jnp.arange(4, dtype=jnp.int32), write
        return jax.lax.scan(step, lm.start(prefix, 4, gaps=True), inputs)[0].logits

    waited = run(lm, prefix, jnp.array([True, False, False, False]))
    dense = lm.advance(prefix, lm.start(prefix, 4), jnp.int32(3), jnp.int32(0)).logits
    np.testing.assert_allclose(waited, dense, atol=1e-5)
    forced = run(lm, prefix, jnp.array([True, False, True, False]))
    np.testing.assert_array_equal(jax.nn.softmax(forced), np.eye(5)[0])


class NotTwice(ppl.Potential):
    """Weight zero for a token that comes twice in a row; known beforehand."""

    def start(self, length):
        """Last token, and whether all was well."""
        return jnp.int32(-1), jnp.ones((), bool)

    def advance(self, state, symbol, context=None):
        """One more token."""
        return symbol, state[1] & (symbol != state[0])

    def log_prefix(self, state, remaining=None):
        """0 or -inf."""
        return jnp.where(state[1], 0.0, -jnp.inf)

    def log_complete(self, state, context=None):
        """As the prefix."""
        return self.log_prefix(state)

    def log_next(self, state, remaining=None):
        """All but the last token."""
        return jnp.where((jnp.arange(3) == state[0]) | ~state[1], -jnp.inf, 0.0)


@pytest.mark.slow
def test_a_hot_start_leaves_the_target():
    story = models.generation(LM, [1], 4, temperature=jnp.array([1.0, 0.8, 1.2, 1.0])) * NotTwice()
    smc = inference.SMC(3, proposal=hotter(story, [3.0, 0.6]))
    result = ppl.laws.proper_weighting(jax.random.key(0), smc, story, runs=2**12)
    assert result.ok, result
