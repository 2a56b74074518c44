"""Python functions of text as potentials: laws against enumeration, calls counted, failures."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compile_count import compiles
from oracles.host_texts import (
    EOS,
    LM,
    PROMPT,
    VOCABULARY,
    closable,
    log_evidence,
    log_p,
    texts,
    written,
    z_score,
)

from feynkac import inference, models, ppl
from feynkac.models.rewards import Reward
from feynkac.models.rewards.check import Check
from feynkac.models.rewards.scores import Reader
from feynkac.ppl.status import NAN

STEPS = 4


def kind(text):
    """Nats for open brackets; long texts are forbidden."""
    return 0.5 * text.count("(") if len(text) < 5 else -np.inf


def long_enough(text):
    return len(text) >= 2


def story(*potentials, **options):
    model = models.generation(LM, [PROMPT], STEPS, **options)
    for potential in potentials:
        model = model * potential.over(VOCABULARY)
    return model


def row(ids):
    return jnp.array((list(ids) + [EOS] * STEPS)[:STEPS], jnp.int32)


ROWS = jnp.stack([row(x) for x in texts(STEPS)])


@jax.jit
def densities(model):
    return jax.vmap(lambda x: ppl.Target(model).log_density({"token": x}))(ROWS)


@pytest.mark.parametrize("prefixes", [False, True])
def test_the_target_is_the_model_times_the_weight_of_complete_texts(prefixes):
    reward, check = Reward(kind, prefixes=prefixes), Check(long_enough)
    model = story(reward, check)
    want = [
        log_p(x) + kind(written(x)) if long_enough(written(x)) else -np.inf for x in texts(STEPS)
    ]
    np.testing.assert_allclose(densities(model), want, atol=1e-5)
    # Another function in its place compiles nothing, and has scores of its own.
    other = Reward(lambda text: 2 * kind(text), prefixes=prefixes) * check
    other = eqx.tree_at(lambda m: m.bound[3], model, other.over(VOCABULARY))
    with compiles() as c:
        twice = np.asarray(densities(other))
    assert c.count == 0, c.names
    assert (twice[np.isfinite(want)] != densities(model)[np.isfinite(want)]).any()


@pytest.fixture(scope="module")
def counted():
    """256 runs of 4 particles, with a reward of complete texts and a prefix-closed check."""
    asked = {"reward": [], "check": []}

    def reward(text):
        asked["reward"].append(text)
        return kind(text)

    def check(text):
        asked["check"].append(text)
        return closable(text)

    model = story(Reward(reward) ** 0.5, Check(check, prefixes=True))
    run = jax.jit(jax.vmap(lambda key, m: inference.SMC(4).run(key, m), in_axes=(0, None)))
    runs = run(jax.random.split(jax.random.key(2), 256), model)
    return asked, runs, model, run


def test_smc_is_unbiased(counted):
    _, runs, _, _ = counted
    weight = lambda x: 0.5 * kind(x) if closable(x) else -np.inf  # noqa: E731
    assert abs(z_score(runs.log_evidence, log_evidence(weight, STEPS))) < 4


def test_each_distinct_text_is_asked_for_once_over_all_runs(counted):
    asked, runs, model, run = counted
    for name, seen in asked.items():
        assert len(set(seen)) == len(seen) > 0, name
    alive = np.isfinite(np.asarray(runs.log_weights))
    rows, lengths = np.asarray(runs.choices["token"])[alive], np.asarray(runs.lengths)[alive]
    ended = {written(r[: n - 1]) for r, n in zip(rows, lengths, strict=True)}
    assert ended <= set(asked["reward"])
    n = [len(seen) for seen in asked.values()]
    jax.block_until_ready(run(jax.random.split(jax.random.key(2), 256), model).log_weights)
    assert [len(seen) for seen in asked.values()] == n


def test_complete_texts_only_and_none_for_what_has_ended():
    asked = []

    def reward(text):
        asked.append(text)
        return 0.0

    model = story(Reward(reward))
    particles = inference.SMC(16, resampler=None).run(jax.random.key(0), model)
    ended = np.isfinite(np.asarray(particles.log_weights))
    rows, lengths = np.asarray(particles.choices["token"]), np.asarray(particles.lengths)
    want = {written(rows[i, : lengths[i] - 1]) for i in np.flatnonzero(ended)}
    assert set(asked) == want and len(asked) == len(want)
    assert not ended.all()


def test_keep_weighs_prefixes_only_if_told():
    unfinished = row([1, 2, 1, 2])
    for prefixes, gain in ((True, kind("()()")), (False, 0.0)):
        model = story(Reward(kind, prefixes=prefixes), at_length=ppl.Keep())
        density = ppl.Target(model).log_density({"token": unfinished})
        assert np.isclose(density, log_p([1, 2, 1, 2], ended=False) + gain, atol=1e-5)


class Trouble(Exception):
    pass


def troubled(text):
    if text == "()":
        raise Trouble("no opinion")
    return {"(": np.nan, "((": np.inf, "))": None}.get(text, 0.25)


@pytest.mark.parametrize("batched", [False, True])
def test_what_fails_is_nan_is_logged_and_loses_nothing_else(batched, caplog):
    fn = (lambda texts: [troubled(x) for x in texts]) if batched else troubled
    reward = Reward(fn, "my reward", batched=batched)
    model = story(reward)
    bad = {"()", "(", "((", "))"}
    log_densities = np.asarray(densities(model))
    for x, got in zip(texts(STEPS), log_densities, strict=True):
        if written(x) in bad and np.isfinite(log_p(x)):
            assert np.isnan(got), x
        else:
            assert np.isclose(got, log_p(x) + 0.25, atol=1e-5) or got == log_p(x)
    assert set(reward.failures) == bad and isinstance(reward.failures["()"], Trouble)
    assert len(caplog.records) == len(bad)
    assert any("my reward" in m and "'()'" in m and "no opinion" in m for m in caplog.messages)
    reward.clear()
    assert not reward.failures


def test_a_run_with_a_failure_says_so_and_goes_on():
    model = story(Check(lambda text: None if text == "(" else True, prefixes=True))
    particles = inference.SMC(64).run(jax.random.key(0), model)
    assert int(particles.status.code) == NAN and np.isnan(particles.log_evidence)
    weights = np.asarray(particles.log_weights)
    rows = np.asarray(particles.choices["token"])
    assert np.isfinite(weights).sum() > 16
    assert (rows[np.isfinite(weights), 0] != 1).all()


def test_texts_of_tokens_that_end_within_a_character():
    tokens = ["é".encode()[:1], "é".encode()[1:], b"a", b"\xff", b"<s>", b"</s>"]
    vocabulary = models.Vocabulary(tokens, eos=5, forbidden=[4])
    usual, whole = Reader(vocabulary), Reader(vocabulary, whole=True)
    for ids, plain, left_out in (
        ([2, 0], "a\ufffd", "a"), ([2, 0, 1], "aé", "aé"), ([0, 2], "\ufffda", "\ufffda"),
        ([3], "\ufffd", "\ufffd"), ([1], "\ufffd", "\ufffd"), ([4, 2, 5], "a", "a"), ([], "", ""),
    ):  # fmt: skip
        assert usual.text(usual.raw(ids)) == plain and whole.text(whole.raw(ids)) == left_out
    for n, raw in ((1, b"\xf0"), (2, b"\xf0\x9f"), (3, b"\xf0\x9f\x98"), (0, "😀".encode())):
        assert whole.text(b"x" + raw) == ("x😀" if n == 0 else "x")


def test_it_has_to_be_put_on_a_vocabulary():
    with pytest.raises(ppl.ProgramError, match="over"):
        Reward(kind).start(3)
    placed = Reward(kind).over(VOCABULARY)
    assert placed.over(models.Vocabulary([b"", b"x"], 0)) is placed
