"""Automata over tokens against `re.fullmatch` on every token string."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compile_count import compiles

from feynkac.models.constraints import Automaton, Regex, Weighted, lipogram
from feynkac.models.language import Vocabulary

from .enumeration import EOS, PATTERNS, TEXTS, VOCABULARY, completions, matches, prefixes

SEEN = 3
REMAINING = (1, 2, 3)
PREFIXES = prefixes(SEEN)
ROWS = np.array([[TEXTS[i] for i in p] + [0] * (SEEN - len(p)) for p in PREFIXES], np.int32)
LENGTHS = np.array([len(p) for p in PREFIXES], np.int32)
LOG_WEIGHTS = np.log(np.random.default_rng(0).dirichlet(np.ones(VOCABULARY.size)))


@jax.jit
def _said(potential, rows, lengths, remaining):
    """Prefix, complete and next weights of each prefix, for each number of remaining symbols."""

    def one(row, length):
        state = potential.start(SEEN + 3)
        for i in range(SEEN):
            new = potential.advance(state, row[i])
            state = jax.tree.map(lambda a, b, i=i: jnp.where(i < length, a, b), new, state)
        at = [
            jax.vmap(lambda r, f=f: f(state, r))(remaining)
            for f in (potential.log_prefix, potential.log_next)
        ]
        return *at, potential.log_complete(state), potential.log_prefix(state)

    return jax.vmap(one)(rows, lengths)


def said(potential):
    rest = jnp.array(REMAINING, jnp.int32)
    return [np.asarray(x) for x in _said(potential, ROWS, LENGTHS, rest)]


def wanted(pattern, log_weights):
    """Log of `completions` of each prefix for 0, 1, ... remaining symbols."""
    table = [
        [completions(pattern, log_weights, p, r) for r in range(REMAINING[-1] + 1)]
        for p in PREFIXES
    ]
    with np.errstate(divide="ignore"):
        return np.log(np.array(table))


def after(prefix_weights, token):
    """Row of the prefix and one more token, where it is in the list."""
    number = {p: i for i, p in enumerate(PREFIXES)}
    return [prefix_weights[number[(*p, token)]] for p in PREFIXES if len(p) < SEEN]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_weights_are_those_of_enumeration(pattern):
    automaton = Regex(pattern).over(VOCABULARY)
    weighted = Weighted.of(automaton, jnp.asarray(LOG_WEIGHTS, float), SEEN + 3)
    whole = np.array([bool(matches(pattern)[len(p)][p]) for p in PREFIXES])
    sums = wanted(pattern, LOG_WEIGHTS)
    feasible = np.where(np.isfinite(sums), 0.0, -np.inf)
    shorter = LENGTHS < SEEN
    gathered = eqx.tree_at(lambda a: a.rows, automaton, None)
    for potential, want in ((automaton, feasible), (gathered, feasible), (weighted, sums)):
        prefix, following, complete, _ = said(potential)
        np.testing.assert_allclose(prefix, want[:, 1:], atol=2e-5)
        np.testing.assert_array_equal(complete, np.where(whole, 0.0, -np.inf))
        log_next = np.full((len(PREFIXES), len(REMAINING), VOCABULARY.size), -np.inf)
        base = np.where(np.isneginf(want[:, 1:]), 0.0, want[:, 1:])
        log_next[:, :, EOS] = np.where(whole[:, None], -base, -np.inf)
        for i, token in enumerate(TEXTS):
            log_next[shorter, :, token] = after(want[:, :-1], i) - base[shorter]
        np.testing.assert_allclose(following[shorter], log_next[shorter], atol=4e-5)


def test_prefixes_of_longer_texts_are_alive_without_a_limit():
    for pattern in (r"a*", r"(ab){4}", r"a{7}|b"):
        alive = np.isfinite(said(Regex(pattern).over(VOCABULARY))[3])
        texts = [b"".join([VOCABULARY.token_bytes[TEXTS[i]] for i in p]) for p in PREFIXES]
        longer = b"ab" * 4 if "ab" in pattern else b"a" * 7
        want = [longer.startswith(x) or x == b"b" and "|" in pattern for x in texts]
        if pattern == "a*":
            want = [set(x) <= {ord("a")} for x in texts]
        np.testing.assert_array_equal(alive, want)


def test_a_lipogram_lacks_its_letters_in_both_cases():
    whole = np.array([bool(matches("[^bBé]*")[len(p)][p]) for p in PREFIXES])
    complete = said(lipogram("B\u00c9").over(VOCABULARY))[2]
    np.testing.assert_array_equal(complete, np.where(whole, 0.0, -np.inf))
    assert 1 < whole.sum() < len(whole)
    over = lipogram("]^-\\").over(Vocabulary([b"a]", b"^", b"-", b"\\", b"ab", b""], 5))
    assert (
        np.isfinite(over.log_next(over.start(3), jnp.int32(3))).tolist() == [False] * 4 + [True] * 2
    )
    with pytest.raises(ValueError, match="which letters"):
        lipogram("")


def test_an_intersection_knows_what_its_parts_do_not():
    one, other = (Regex(p).over(VOCABULARY) for p in (r"a*1?|b", r"(aa)*b?|b"))
    both = one.intersect(other)
    for mine, theirs in zip(said(both), said(Regex(r"(aa)*|b").over(VOCABULARY)), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    apart = Regex(r"a*1").over(VOCABULARY)
    with pytest.raises(ValueError, match="no text"):
        apart.intersect(Regex(r"b").over(VOCABULARY))
    # In a product a particle may go on where both, but not together, can.
    clash = said(apart * Regex(r"a*b").over(VOCABULARY))
    assert np.isfinite(clash[0]).any() and not np.isfinite(clash[2]).any()


def test_a_pattern_of_like_size_compiles_nothing():
    said(Regex("a{2}b").over(VOCABULARY))
    new = Regex("b(1|a)").over(VOCABULARY)
    with compiles() as made:
        said(new)
    assert made.count == 0, made.names


def test_errors_say_what_to_do():
    cases = {
        r"[^\s\S]": "matches no text",
        r"a^b": "anchor",
        r"(a": "no regular expression",
        r"a)|(b": r"without its \(",
        r"(?=a)b": "Look-around",
        r"(a)\1": "back-references",
        r"xyz": "lack",
    }
    for pattern, message in cases.items():
        with pytest.raises(ValueError, match=message):
            Regex(pattern).over(VOCABULARY)
    with pytest.raises(ValueError, match="no token with a text"):
        Regex("a").over(Vocabulary([b"</s>", b""], 0))
    with pytest.raises(ValueError, match="max_tokens of at least 3"):
        Regex("11").over(VOCABULARY).start(2)
    with pytest.raises(ValueError, match="over"):
        Regex("a").start(3)
    automaton = Regex("a+").over(VOCABULARY)
    with pytest.raises(ValueError, match="finite"):
        Weighted.of(automaton, jnp.full(VOCABULARY.size, -jnp.inf), 3)
    with pytest.raises(ValueError, match="one a token"):
        Weighted.of(automaton, jnp.zeros(3), 3)
    with pytest.raises(ValueError, match="length=4"):
        Weighted.of(automaton, jnp.zeros(VOCABULARY.size), 3).start(4)
    other = Vocabulary([b"a", b"</s>"], 1)
    with pytest.raises(ValueError, match="one vocabulary"):
        automaton.intersect(Regex("a").over(other))


def test_tables_are_kept_by_pattern_and_vocabulary():
    again = Vocabulary(VOCABULARY.token_bytes, EOS, list(VOCABULARY.forbidden))
    one, two = (Regex("(ab)*").over(v) for v in (VOCABULARY, again))
    assert isinstance(one, Automaton) and one.fewest_tokens == 0
    assert jax.tree.all(jax.tree.map(np.array_equal, one, two))
