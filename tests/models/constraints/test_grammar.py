"""Grammars: masks against enumeration, evidence against the exact one, and clear errors."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.host_texts import (
    LM,
    PROMPT,
    VOCABULARY,
    balanced,
    closable,
    log_evidence,
    log_p,
    written,
    z_score,
)

from feynkac import inference, models, ppl
from feynkac.models.constraints.grammar import Grammar, GrammarError
from feynkac.models.constraints.parsers import ALIVE, DEAD, Parsers, prepared

BALANCED = 'start: s\ns: | "(" s ")" s'
STEPS = 5
BYTES = models.Vocabulary([*(bytes([i]) for i in range(256)), b"", b"true", b'{"'], 256)


def allowed(parsers, ids):
    mask, state = parsers.after(np.asarray(ids, np.int32))
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    return set(np.flatnonzero(bits).tolist()), state


def accepts(parsers, text: bytes) -> bool:
    """Is the text, byte by byte, allowed and whole?"""
    for n, byte in enumerate(text):
        if byte not in allowed(parsers, list(text[:n]))[0]:
            return False
    return 256 in allowed(parsers, list(text))[0]


@pytest.fixture(scope="module")
def story():
    grammar = Grammar(BALANCED).over(VOCABULARY)
    return models.generation(LM, [PROMPT], STEPS) * grammar


def test_masks_are_the_next_tokens_of_the_language_in_any_order_of_asking():
    size = 2  # fewer than the prefixes: states are dropped and made again
    parsers = Parsers(prepared(BALANCED), VOCABULARY, size)
    prefixes = [x for n in range(4) for x in itertools.product([1, 2, 3], repeat=n)]
    np.random.default_rng(0).shuffle(prefixes)
    for ids in prefixes * 2:
        text = written(ids)
        if not closable(text):
            continue
        depth = text.count("(") - text.count(")")
        want = {1, 3} | ({2} if depth > 0 else {0})
        assert allowed(parsers, ids) == (want, ALIVE), text


def test_enumerated_law_and_weights_of_given_texts(story):
    exact = inference.exact.enumerate(story)
    want = log_evidence(lambda x: 0.0 if balanced(x) else -np.inf, STEPS)
    assert np.isclose(exact.log_evidence, want, atol=1e-5)
    assess = jax.jit(lambda choices: ppl.Target(story).log_density(choices))
    for ids in ([], [3, 1, 2], [1, 1, 2, 2], [1, 2, 2], [2, 1], [1, 3]):
        density = assess({"token": jnp.array((ids + [0] * STEPS)[:STEPS], jnp.int32)})
        want = log_p(ids) if balanced(written(ids)) else -np.inf
        assert np.isclose(density, want, atol=1e-5), ids


def test_smc_is_unbiased_and_every_text_balanced(story):
    keys = jax.random.split(jax.random.key(1), 1000)
    runs = jax.jit(jax.vmap(lambda key: inference.SMC(4).run(key, story)))(keys)
    exact = log_evidence(lambda x: 0.0 if balanced(x) else -np.inf, STEPS)
    assert abs(z_score(runs.log_evidence, exact)) < 4
    alive = np.isfinite(np.asarray(runs.log_weights))
    rows, lengths = np.asarray(runs.choices["token"])[alive], runs.lengths[alive]
    assert len(rows) > 1000
    assert all(balanced(written(r[: n - 1])) for r, n in zip(rows, lengths, strict=True))


def test_json_schema_and_tokens_that_cross_its_borders():
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": {"enum": ["é", "x"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    grammar = Grammar.json_schema(schema, whitespace_flexible=False).over(BYTES)
    parsers = grammar.parsers.value
    for value in (
        {"a": True},
        {"a": False, "b": "é"},
        {"a": 1},
        {"b": "x"},
        {},
        {"a": True, "c": 1},
    ):
        good = isinstance(value.get("a"), bool) and set(value) <= {"a", "b"}
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
        assert accepts(parsers, text) == good, value
    begin = allowed(parsers, [])[0]
    assert begin == {ord("{"), 258}  # "{" and '{"', none forced
    after = [258, ord("a"), ord('"'), ord(":")]
    assert allowed(parsers, after)[0] == {ord("t"), ord("f"), 257}
    assert allowed(parsers, [*after, 257])[0] == {ord("}"), ord(",")}
    half = list(b'{"a":true,"b":"\xc3')  # a text may stop within a character, and go on
    assert allowed(parsers, half)[0] == {0xA9}


def test_remaining_leaves_only_the_end():
    grammar = Grammar.regex("a*b?").over(BYTES)
    state = grammar.start(3)
    can = lambda left: set(np.flatnonzero(np.isfinite(grammar.log_next(state, left))))  # noqa: E731
    assert can(None) == can(jnp.int32(2)) == {ord("a"), ord("b"), 256}
    assert can(jnp.int32(1)) == {256}
    assert grammar.log_prefix(state, jnp.int32(0)) == -jnp.inf
    state = grammar.advance(state, jnp.int32(ord("b")))
    assert can(None) == {256} and grammar.log_complete(state) == 0
    state = grammar.advance(state, jnp.int32(ord("a")))  # not allowed
    assert grammar.log_prefix(state) == -jnp.inf and grammar.log_complete(state) == -jnp.inf


def test_a_vocabulary_that_runs_dry_is_a_dead_end_not_an_end():
    parsers = Parsers(prepared('start: "(x" | ")"'), VOCABULARY, 8)
    assert allowed(parsers, [2]) == ({0}, ALIVE)
    assert allowed(parsers, [1]) == (set(), DEAD)


def test_errors_say_where():
    with pytest.raises(GrammarError, match="malformed"):
        Grammar("start: (")
    with pytest.raises(GrammarError, match="malformed"):
        Grammar.json_schema({"type": "nonsense"})
    with pytest.raises(GrammarError, match="allows no text"):
        Grammar('start: "x"').over(VOCABULARY)
    with pytest.raises(ppl.ProgramError, match="over"):
        Grammar(BALANCED).start(3)
