"""Potentials over bytes, characters, words and steps on tokens, against the text of the tokens."""

import itertools
import json
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac import inference, models, ppl
from feynkac.models.finite import MarkovLanguageModel, MarkovLM
from feynkac.models.language import Vocabulary
from feynkac.models.language.alphabets import Bytes
from feynkac.models.language.characters import Characters
from feynkac.models.language.json_bytes import JSONBytes
from feynkac.models.language.rules import Count, Without, haiku, syllables
from feynkac.models.language.units import Steps, Unit, Words


class Listed(ppl.Potential):
    """Keeps the symbols; the prefix weight is their number, in nats."""

    size: int = 12

    def start(self, length):
        return jnp.zeros(self.size, jnp.int32), jnp.int32(0)

    def advance(self, state, symbol, context=None):
        seen, n = state
        symbol = symbol.length if isinstance(symbol, Unit) else symbol
        return jnp.where(jnp.arange(self.size, dtype=jnp.int32) == n, symbol, seen), n + 1

    def log_prefix(self, state, remaining=None):
        return state[1].astype(float)

    def log_complete(self, state, context=None):
        return self.log_prefix(state)


class Joined(ppl.Potential):
    """Keeps the bytes of units side by side, each followed by a bar."""

    def start(self, length):
        return jnp.zeros(40, jnp.int32), jnp.int32(0)

    def advance(self, state, unit, context=None):
        seen, n = state
        size = jnp.minimum(unit.length, unit.raw.shape[0])
        at = jnp.arange(40, dtype=jnp.int32) - n
        raw = unit.raw[jnp.clip(at, 0, unit.raw.shape[0] - 1)].astype(jnp.int32)
        seen = jnp.where((at >= 0) & (at < size), raw, seen)
        return jnp.where(at == size, ord("|"), seen), n + size + 1

    def log_prefix(self, state, remaining=None):
        return jnp.zeros(())

    def log_complete(self, state, context=None):
        return jnp.zeros(())


WIDTH = 72


def read_bytes(potential, texts):
    """States of a byte potential after each text."""
    rows = np.zeros((len(texts), WIDTH), np.int32)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = list(text)
    return _read(potential, jnp.asarray(rows), jnp.asarray([len(t) for t in texts], jnp.int32))


@eqx.filter_jit
def _read(potential, rows, lengths):
    def read(row, n):
        def one(i, state):
            new = potential.advance(state, row[i])
            return jax.tree.map(lambda a, b: jnp.where(i < n, a, b), new, state)

        return jax.lax.fori_loop(0, WIDTH, one, potential.start(WIDTH))

    return jax.vmap(read)(rows, lengths)


@eqx.filter_jit
def _weights(potential, states):
    return jax.vmap(lambda s: (potential.log_prefix(s), potential.log_complete(s)))(states)


def test_characters_are_decoded_as_python_does():
    rng = np.random.default_rng(0)
    interesting = [0x41, 0x7F, 0x80, 0xBF, 0xC0, 0xC2, 0xDF, 0xE0, 0xA0, 0x9F, 0xED, 0xEF, 0xF0]
    interesting += [0x90, 0x8F, 0xF4, 0xF5, 0xFF]
    texts = [bytes(rng.choice(interesting, rng.integers(0, 9)).tolist()) for _ in range(400)]
    texts += [s.encode() for s in ("aé", "€b", "😀", "日本")] + [
        "😀".encode()[:k] for k in (1, 2, 3)
    ]
    potential = Characters(Listed())
    states = read_bytes(potential, texts)
    counts = _weights(potential, states)[1]
    seen, n = (np.asarray(x) for x in states[1])
    for text, row, k, count in zip(texts, seen, n, counts, strict=True):
        want = [ord(c) for c in text.decode("utf-8", "replace")]
        assert row[:k].tolist() == want[:k], text
        assert int(count) == len(want), text
        assert k in (len(want), len(want) - 1)


def test_words_and_steps_are_cut_and_the_last_is_given_at_the_end():
    texts = [b"", b" a", b"one  two,don't", "né!x".encode(), b"longerthan8", b"a\n\n\nb\n\n", b"\n"]
    for potential, cut in (
        (Words(Joined(), 8), lambda t: re.findall(rb"[0-9A-Za-z'\x80-\xff]+", t)),
        (Steps(Joined(), "\n\n", 8), lambda t: [u for u in t.split(b"\n\n") if u]),
    ):
        states = read_bytes(potential, texts)
        flushed = jax.vmap(lambda s, p=potential: p._give(s, s.length, jnp.ones((), bool)))(states)
        for text, seen, n in zip(texts, *map(np.asarray, flushed), strict=True):
            want = b"".join(u[:8] + b"|" for u in cut(text))
            assert bytes(seen[:n].tolist()) == want, text


# A vocabulary that cuts characters, words and delimiters in all ways; 7 is special, 8 is empty.
EOS = 0
PIECES = [b"", b"a", b" b", b"\xc3", b"\xa9", b"b\n", b"\na ", b"<x>", b""]
VOCABULARY = Vocabulary(PIECES, EOS, [7])
T = 4
RNG = np.random.default_rng(1)
TABLE = RNG.dirichlet(np.ones(len(PIECES)), len(PIECES))
LM = MarkovLanguageModel(MarkovLM(jnp.log(TABLE[0]), jnp.log(TABLE), EOS))


def all_texts():
    for n in range(T):
        yield from itertools.product(range(1, 7), repeat=n)


def log_p(tokens):
    return sum(np.log(TABLE[a, b]) for a, b in itertools.pairwise([1, *tokens, EOS]))


def raw(tokens):
    return b"".join(PIECES[i] for i in tokens)


def law(flag):
    return 0.0 if flag else -np.inf


CASES = {
    "bytes": (Bytes(Count(2, 4)), lambda t: law(2 <= len(t) <= 4)),
    "characters": (
        Characters(Count(2, 3), ahead=True) * Characters(Without("éÉ"), ahead=True),
        lambda t: law(2 <= len(s := t.decode("utf-8", "replace")) <= 3 and "é" not in s),
    ),
    "valid": (
        Characters(Without("\ufffd")),
        lambda t: law(t == t.decode("utf-8", "ignore").encode()),
    ),
    "words": (
        Words(Listed(), 4) ** 0.5 * Words(Count(1, 2), 4),
        lambda t: (
            0.5 * n + law(1 <= n <= 2)
            if (n := len(re.findall(rb"[a-z\x80-\xff]+", t))) is not None
            else None
        ),
    ),
    "steps": (Steps(Listed(), "\na", 4), lambda t: float(sum(map(bool, t.split(b"\na"))))),
    "both": (
        Bytes(Words(Count(0, 2), 4), ahead=True),
        lambda t: law(len(re.findall(rb"[a-z\x80-\xff]+", t)) <= 2),
    ),
}


def weighed(potential):
    """Log weights of all texts by telescoping, and whether `log_next` says what `weigh` does."""
    on = potential.over(VOCABULARY)
    texts = list(all_texts())
    rows = np.zeros((len(texts), T), np.int32)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = text

    @jax.jit
    @jax.vmap
    def run(row):
        def one(carry, inputs):
            state, over = carry
            token, t = inputs
            remaining = T - t
            known = on.log_next(state, remaining)
            new, gain = on.weigh(state, token, token == EOS, remaining)
            error = 0.0 if known is None else jnp.where(over, 0.0, _gap(known[token], gain))
            state = jax.tree.map(lambda a, b: jnp.where(over, b, a), new, state)
            return (state, over | (token == EOS)), (jnp.where(over, 0.0, gain), error)

        state = on.start(T)
        inputs = (row, jnp.arange(T, dtype=jnp.int32))
        _, (gains, errors) = jax.lax.scan(one, (state, jnp.zeros((), bool)), inputs)
        return on.log_prefix(state, jnp.int32(T)) + gains.sum(), errors.max()

    return texts, *run(jnp.asarray(rows))


def _gap(a, b):
    dead = jnp.isneginf(a) & jnp.isneginf(b)
    return jnp.where(dead, 0.0, jnp.abs(a - b))


@pytest.mark.parametrize("case", CASES)
def test_tokens_weigh_what_their_bytes_weigh(case):
    potential, weight = CASES[case]
    texts, log_weights, errors = weighed(potential)
    want = np.array([weight(raw(x)) for x in texts])
    np.testing.assert_allclose(log_weights, want, atol=1e-5)
    assert float(np.max(errors)) < 1e-5
    assert np.isfinite(want).any() and (case == "steps" or np.isneginf(want).any())


@pytest.mark.slow
def test_smc_is_unbiased_and_guided_draws_obey():
    potential = (Characters(Without("éÉ"), ahead=True) * Words(Listed(), 4) ** 0.5).over(VOCABULARY)
    story = models.generation(LM, [1], T) * potential

    def weight(text):
        words = len(re.findall(rb"[a-z\x80-\xff]+", text))
        return law("é".encode() not in text) + 0.5 * words

    want = np.logaddexp.reduce([log_p(x) + weight(raw(x)) for x in all_texts()])
    keys = jax.random.split(jax.random.key(0), 2000)
    runs = jax.jit(jax.vmap(lambda key: inference.SMC(4).run(key, story)))(keys)
    ratio = np.exp(np.asarray(runs.log_evidence) - want)
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(ratio.size)
    tokens, lengths = np.asarray(runs.choices["token"]), np.asarray(runs.lengths)
    for row, n in zip(tokens.reshape(-1, T), lengths.ravel(), strict=True):
        assert "é".encode() not in raw(row[:n])
        assert not {7, 8} & set(row[:n].tolist())


def checked(potential, text):
    """Is each prefix possible, and the whole right?"""
    texts = [text[:n] for n in range(WIDTH + 1)]
    prefix, whole = _weights(potential, read_bytes(potential, texts))
    return np.isfinite(prefix)[: len(text) + 1], np.isfinite(whole)[: len(text) + 1]


def test_json_is_what_a_parser_takes():
    good = ['{"a": [1, -2.5e+3, true], "b\\u00e9": {}}', "[]", " 0 ", '"x\\n"', "[[null,false],{}]"]
    rng = np.random.default_rng(2)
    texts = [t.encode() for t in good]
    for text in good:
        for _ in range(60):
            broken = bytearray(text.encode())
            broken[rng.integers(len(broken))] = int(rng.choice(list(b'[]{},:"0e.-\\ tn')))
            texts.append(bytes(broken)[: rng.integers(1, len(broken) + 1)])
    potential = JSONBytes()
    states = read_bytes(potential, texts)
    prefix, whole = (np.isfinite(x) for x in _weights(potential, states))
    want = np.array([_parses(t) for t in texts])
    assert (whole == want).all() and want.sum() > 10 and (~want).sum() > 100
    assert prefix[want].all() and (~prefix).sum() > 50
    # A prefix is possible in so many bytes if and only if it can be completed in them.
    for text, least in ((b'{"a', 4), (b"[[1", 2), (b"[1,", 2), (b'"\\u', 5), (b"tr", 2), (b"7", 0)):
        state = jax.tree.map(lambda x: x[0], read_bytes(potential, [text]))
        limits = [
            bool(np.isfinite(potential.log_prefix(state, jnp.int32(n + 1)))) for n in range(7)
        ]
        assert limits == [n >= least for n in range(7)], text


def _parses(text):
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def test_syllables_and_haiku():
    poem = b"an old silent pond\na frog jumps into the pond\nsplash, silence again\n"
    lines = [line for line in poem.split(b"\n") if line]
    raw = np.zeros((len(lines), 32), np.uint8)
    for row, line in zip(raw, lines, strict=True):
        row[: len(line)] = list(line)
    lengths = jnp.asarray([len(x) for x in lines], jnp.int32)
    count = jax.jit(jax.vmap(lambda row, n: syllables(Unit(row, n))))
    assert count(jnp.asarray(raw), lengths).tolist() == [5, 7, 5]
    right, wrong = haiku(), haiku((5, 7, 4))
    prefix, whole = checked(right, poem)
    n = len(poem)
    # The last word may already be long enough before it is whole.
    assert prefix.all() and {n - 1, n} <= set(np.flatnonzero(whole)) <= {n - 3, n - 2, n - 1, n}
    prefix, whole = checked(wrong, poem)
    assert prefix[: poem.index(b"again")].all() and not prefix[-1] and not whole[-1]
    assert not checked(right, b"an old silent pond\n\n")[0][-1]
