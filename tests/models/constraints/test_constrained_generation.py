"""Language models times automata: evidence by enumeration, and texts that obey."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compile_count import compiles

from feynkac import inference, models
from feynkac.models.constraints import Regex, Weighted
from feynkac.models.finite import MarkovLanguageModel, MarkovLM

from .enumeration import EOS, TEXTS, TOKENS, VOCABULARY, matches

T, N, RUNS = 5, 8, 1000
RNG = np.random.default_rng(1)
V = VOCABULARY.size
ROWS = RNG.dirichlet(np.full(V, 2.0), V)
STORIES = {}
PATTERNS = (r"[ab]{2,4}1?", r"(a|ab)+1b?", r"\u00e9+b?|b+", r"b( b1)*")


def language_model(rows):
    lm = MarkovLM(jnp.log(jnp.asarray(rows[EOS], float)), jnp.log(jnp.asarray(rows, float)), EOS)
    return MarkovLanguageModel(lm)


def weighed(rows, potential):
    """The model times a potential; the same program for all, so that it is compiled once a kind."""
    story = STORIES.setdefault(
        type(potential), models.generation(language_model(ROWS), [EOS], T) * potential
    )
    _, prefix, temperature, _ = story.bound
    return eqx.tree_at(
        lambda s: s.bound,
        story,
        (language_model(rows), eqx.tree_at(lambda p: p.logits, prefix, jnp.log(rows[EOS])),
         temperature, potential),
    )  # fmt: skip


def evidence(pattern, rows):
    """The probability that the text matches and ends within T tokens."""
    ids = list(TEXTS)
    paths, total = np.ones(()), 0.0
    for n, found in enumerate(matches(pattern)[:T]):
        if n == 1:
            paths = rows[EOS][ids]
        elif n:
            paths = paths[..., None] * rows[np.ix_(ids, ids)]
        end = rows[EOS, EOS] if n == 0 else rows[ids, EOS]
        total += (paths * found * end).sum()
    return np.log(total)


@eqx.filter_jit
def runs(story, keys):
    return jax.vmap(lambda key: inference.SMC(N).run(key, story))(keys)


def check_texts(pattern, particles):
    """All texts of non-zero weight are whole and match."""
    alive = np.isfinite(np.asarray(particles.log_weights))
    tokens, lengths = np.asarray(particles.choices["token"]), np.asarray(particles.lengths)
    rows = {(*row[:n],) for row, n in zip(tokens[alive].tolist(), lengths[alive], strict=True)}
    assert len(rows) > 3
    for row in rows:
        assert row[-1] == EOS
        text = b"".join((*TOKENS, b"")[i] for i in row[:-1]).decode()
        assert re.fullmatch(pattern, text), text


def ratios(story, pattern, rows, seed=0):
    particles = runs(story, jax.random.split(jax.random.key(seed), RUNS))
    check_texts(pattern, particles)
    return np.exp(np.asarray(particles.log_evidence) - evidence(pattern, rows)), particles


def unbiased(ratio):
    return abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(ratio.size) + 1e-5


@pytest.mark.slow
def test_evidence_is_unbiased_and_a_look_ahead_lowers_its_variance():
    log_unigram = jnp.log(jnp.asarray(ROWS.mean(axis=0), float))
    for pattern in PATTERNS:
        automaton = Regex(pattern).over(VOCABULARY)
        weighted = Weighted.of(automaton, log_unigram, T)
        stories = [weighed(ROWS, potential) for potential in (automaton, weighted)]
        with compiles() as made:
            (blind, particles), (ahead, _) = (ratios(s, pattern, ROWS) for s in stories)
        assert unbiased(blind) and unbiased(ahead), pattern
        assert ahead.var() < 0.5 * blind.var()
        assert np.isfinite(np.asarray(particles.log_weights)).all(), "a dead end was entered"
        assert pattern == PATTERNS[0] or not [x for x in made.names if "runs" in x]


def test_for_independent_tokens_the_look_ahead_is_exact():
    rows = np.tile(ROWS[:1], (V, 1))
    log_weights = jnp.log(jnp.asarray(rows[0], float))
    for pattern in PATTERNS:
        automaton = Regex(pattern).over(VOCABULARY)
        story = weighed(rows, Weighted.of(automaton, log_weights, T))
        ratio, particles = ratios(story, pattern, rows, seed=1)
        np.testing.assert_allclose(ratio, 1.0, atol=1e-4)
        np.testing.assert_allclose(
            particles.log_weights, np.full((RUNS, N), evidence(pattern, rows)), atol=1e-4
        )


def test_enumeration_of_the_model_itself_agrees():
    # Longer texts than the room allows have weight zero, and count as nothing.
    story = models.generation(language_model(ROWS), [EOS], 3) * Regex("a*b?").over(VOCABULARY)
    exact = inference.exact.enumerate(story)
    found = [m if n < 3 else np.zeros_like(m) for n, m in enumerate(matches("a*b?"))]
    ids = list(TEXTS)
    want = ROWS[EOS, EOS] + (ROWS[EOS][ids] * found[1] * ROWS[ids, EOS]).sum()
    pairs = ROWS[EOS][ids][:, None] * ROWS[np.ix_(ids, ids)] * ROWS[ids, EOS]
    assert np.isclose(exact.log_evidence, np.log(want + (pairs * found[2]).sum()), atol=1e-5)


def test_a_model_without_a_tokenizer_says_what_is_missing():
    with pytest.raises(ValueError, match="vocabulary of your own"):
        models.generation(language_model(ROWS), [EOS], 3) * Regex("a")
