"""The framework's compiled program costs what the same particle filter costs by hand.

The loop by hand is `benchmarks/handwritten.py`, an oracle of its own: it has the same law.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac import inference, models, ppl
from feynkac.models.language import random_llama

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
N, LENGTH, VOCABULARY = 8, 16, 640


@pytest.fixture(scope="module")
def dsl_cost():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import dsl_cost

        yield dsl_cost
    for name in ("dsl_cost", "handwritten", "timing"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def lm():
    # Wide beside its vocabulary, as real models are: bytes are those of weights, not of logits.
    return random_llama(
        jax.random.key(1), VOCABULARY, layers=2, d=512, heads=8, kv_heads=2, scale=2.0
    )


@pytest.fixture(scope="module")
def case(dsl_cost, lm):
    return dsl_cost.Case(lm, lm.prompt([3, 1, 4, 1, 5]), N, LENGTH, ppl.Keep())


@pytest.mark.parametrize("count", ["flops", "bytes accessed", "transcendentals"])
@pytest.mark.slow
def test_compiled_cost_is_that_of_the_loop_by_hand(case, count):
    ours, hand = case.cost(count)
    assert hand > 0
    assert ours <= 1.02 * hand


def test_a_step_makes_no_large_array_more(dsl_cost, case):
    # A second softmax, forward pass, or select over the caches would be one.
    ours, hand = (
        dsl_cost.large_arrays(p.as_text(), N * VOCABULARY) for p in (case.ours, case.hand)
    )
    assert any(shape == f"f32[{N},{VOCABULARY}]" for _, shape in hand)
    assert ours == hand


def test_caches_are_copied_only_to_resample(dsl_cost, lm, case):
    shape = dsl_cost.suffix_shape(lm, N, LENGTH)
    ours, hand = (dsl_cost.cache_copies(p.as_text(), shape) for p in (case.ours, case.hand))
    caches = 2 * len(lm.layers) * 4 * int(np.prod(shape))
    assert ours[0] == 0
    assert ours[1] == hand[1] <= caches


def test_temporary_memory(case):
    ours, hand = (p.memory_analysis().temp_size_in_bytes for p in (case.ours, case.hand))
    assert ours <= 1.02 * hand


def test_the_cost_of_waste_is_seen(dsl_cost, lm, case):
    """A step that looks at the logits after the likeliest token: a second forward pass."""
    prefix = lm.prompt([3, 1, 4, 1, 5])

    def init(ctx, lm, prefix):
        text = models.Text.start(lm, prefix, LENGTH)
        return text.hot, text.ended

    def step(ctx, state, t, lm, prefix):
        model = state[0].value
        ahead = lm.advance(prefix, model, jnp.argmax(model.logits).astype(jnp.int32), t)
        token = ctx.sample("token", ppl.Token(model.logits + 0.1 * ahead.logits))
        return ppl.Hot(lm.advance(prefix, model, token, t)), token == lm.eos

    story = ppl.bind(ppl.StateSpace(init, step, LENGTH, done=lambda s: s[1]), lm, prefix)
    key = jax.random.key(0)
    wasteful = dsl_cost.compiled(inference.SMC(N), key, story)
    ours = case.ours.cost_analysis()["bytes accessed"]
    assert wasteful.cost_analysis()["bytes accessed"] > 1.02 * ours
    large = dsl_cost.large_arrays(wasteful.as_text(), N * VOCABULARY)
    assert sum(large.values()) > sum(
        dsl_cost.large_arrays(case.ours.as_text(), N * VOCABULARY).values()
    )


@pytest.mark.slow
def test_both_have_the_same_evidence(case):
    keys = jax.random.split(jax.random.key(7), 100)
    means, errors = [], []
    for run, part in ((case.run_ours, keys[:50]), (case.run_hand, keys[50:])):
        z = np.exp(np.array([float(run(key).log_evidence) for key in part]))
        means.append(z.mean())
        errors.append(z.std(ddof=1) / len(z) ** 0.5)
    assert all(e > 0 for e in errors)
    assert abs(means[0] - means[1]) < 4 * float(np.hypot(*errors))


def test_ends_of_text_of_the_loop_by_hand(case):
    run = case.run_hand(jax.random.key(3))
    tokens, lengths = np.asarray(run.tokens), np.asarray(run.lengths)
    for row, length in zip(tokens, lengths, strict=True):
        assert (row[length:] == 0).all()
        assert (row[: length - 1] != 0).all()  # 0 is the end of text
    np.testing.assert_allclose(
        run.log_evidence, jax.nn.logsumexp(run.log_weights) - jnp.log(N * 1.0), rtol=1e-6
    )
