"""Searches against brute force on models small enough to enumerate."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.tiny_models import END, HARSH, MILD, TABLE, text

from feynkac import inference, ppl
from feynkac.inference.search import (
    DVTS,
    BeamSearch,
    BestOfN,
    Enumerated,
    MajorityVote,
    ProbabilityVote,
    Sampled,
    WeightedBestOfN,
    beams_many,
    tally,
)

KEY = jax.random.key(3)
N = 24


def _reward(path):
    return path.log_likelihood


def _twice(choices):
    return 2 * jnp.ones_like(choices["token"])


FEW = BeamSearch(2, 3, tokens=_twice)
FULL = BeamSearch(27, Enumerated("token"))


def words(choices):
    """The tokens up to the end, as a hashable."""
    tokens = [int(t) for t in choices["token"]]
    return tuple(tokens[: tokens.index(END) + 1] if END in tokens else tokens)


@pytest.fixture(scope="module")
def drawn():
    """The candidates that every selection below sees: same key, same draws."""
    return inference.Importance(N).run(KEY, text())


@eqx.filter_jit
def _log_densities(target, choices):
    return jax.vmap(target.log_density)(choices)


def classes(particles, weights):
    """Answers and their totals, by a plain loop."""
    totals: dict = {}
    for i, w in enumerate(weights):
        answer = words(jax.tree.map(lambda x: x[i], particles.choices))  # noqa: B023
        totals[answer] = totals.get(answer, 0.0) + w
    return totals


def test_best_of_n_takes_the_best_and_counts(drawn):
    target, log_w = text(), np.asarray(drawn.log_weights)
    choice = BestOfN(N).run(KEY, target)
    assert choice.index == np.argmax(log_w) and choice.score == pytest.approx(log_w.max())
    again = BestOfN(N).run(KEY, target)
    assert again.index == choice.index and np.array_equal(again.scores, choice.scores)
    calls = []

    def score(choices):
        calls.append(words(choices))
        return float(len(words(choices))) - 0.1 * int(choices["mood"])

    choice = BestOfN(N, score).run(KEY, target)
    by_hand = [score(jax.tree.map(lambda x: x[i], drawn.choices)) for i in range(N)]  # noqa: B023
    assert choice.index == int(np.argmax(by_hand))  # the first of equals
    lengths = np.asarray(drawn.lengths)
    spent = choice.ledger
    assert (spent.tokens, spent.moves, spent.passes) == (
        lengths.sum(),
        lengths.sum(),
        lengths.max(),
    )
    assert spent.rewards == len(calls) - N < N  # equal candidates are scored once
    assert spent.resamplings == 0 and spent.seconds > 0
    with pytest.raises(AttributeError, match="no log_evidence.*inference.SMC"):
        _ = choice.log_evidence


def test_votes_against_a_loop(drawn):
    target = text()
    counts = classes(drawn, np.ones(N))
    choice = MajorityVote(N, words).run(KEY, target)
    assert choice.answer == max(counts, key=counts.__getitem__)
    assert {v.answer: v.total for v in choice.votes} == counts
    weights = np.exp(np.asarray(drawn.log_weights, np.float64))
    posterior = classes(drawn, weights / weights.max())
    choice = WeightedBestOfN(N, words).run(KEY, target)
    assert choice.answer == max(posterior, key=posterior.__getitem__)
    assert choice.votes[0].total == pytest.approx(posterior[choice.answer], rel=1e-5)
    assert words(choice.choices) == choice.answer
    lengths = WeightedBestOfN(N, words, lambda c: len(words(c))).run(KEY, target)
    assert lengths.votes[0].total == len(lengths.answer) * counts[lengths.answer]
    even = MajorityVote(N, words, same=lambda a, b: len(a) % 2 == len(b) % 2).run(KEY, target)
    assert sorted(v.total for v in even.votes) == sorted(
        sum(n for a, n in counts.items() if len(a) % 2 == odd) for odd in (0, 1)
    )
    choice = ProbabilityVote(N, words).run(KEY, target)
    log_p = np.asarray(_log_densities(target, drawn.choices))
    rows = zip(*(np.asarray(drawn.choices[s]) for s in ("mood", "token")), log_p, strict=True)
    seen = {(int(m), words({"token": t})): float(p) for m, t, p in rows}  # each text once
    mass: dict = {}
    for (_, answer), log_p in seen.items():
        mass[answer] = mass.get(answer, 0.0) + np.exp(log_p)
    assert choice.answer == max(mass, key=mass.__getitem__)
    totals = np.array([mass[v.answer] for v in choice.votes])
    np.testing.assert_allclose(
        [v.total / choice.votes[0].total for v in choice.votes], totals / totals[0], rtol=1e-4
    )


def test_ties_and_abstentions():
    votes = tally(["b", "a", None, "a", "b", "c"], [1, 1, 9, 1, 1, 0])
    assert [(v.answer, v.total, v.members) for v in votes] == [("b", 2, (0, 4)), ("a", 2, (1, 3))]
    assert tally([None, None]) == ()
    with pytest.raises(ValueError, match="not negative"):
        tally(["a"], [-0.5])


def test_lost_candidates_and_dead_populations(drawn, caplog):
    target = text()
    kept = [i for i in range(N) if len(words({"token": drawn.choices["token"][i]})) == 1]

    def short(choices):
        if len(words(choices)) == 2:
            raise RuntimeError("no score for two words")
        return 1.0 if len(words(choices)) == 1 else np.nan

    choice = BestOfN(N, short).run(KEY, target)
    assert choice.index == kept[0] and choice.status and "two words" in caplog.text
    nothing = BestOfN(N, lambda c: np.nan).run(KEY, target)
    assert nothing.index == -1 and nothing.choices is None and nothing.status.code == 2
    dead = text(np.full_like(MILD, -np.inf))
    for search in (
        BestOfN(4),
        MajorityVote(4, words),
        BeamSearch(2, 2),
        BeamSearch(3, Enumerated("token")),
    ):
        choice = search.run(KEY, dead)
        assert choice.index == -1 and choice.score == -np.inf and choice.status.code == 1
        with pytest.raises(inference.InferenceError, match="died"):
            search.run(KEY, dead, throw=True)


@pytest.mark.parametrize(
    "at_length", [ppl.Keep(), pytest.param(ppl.Reject(), marks=pytest.mark.slow)]
)
def test_a_beam_of_full_width_finds_the_mode(at_length):
    for factors in (MILD, HARSH):
        target = text(factors, at_length, {"mood": jnp.array(1)})
        rows = {words({"token": np.array(x)}) for x in itertools.product(range(3), repeat=3)}
        table = np.array([(*row, 0, 0)[:3] for row in sorted(rows)])
        log_p = np.asarray(_log_densities(target, {"token": jnp.asarray(table)}))
        choice = FULL.run(KEY, target)
        assert list(choice.choices["token"]) == list(table[np.argmax(log_p)])
        found = choice.scores[choice.scores > -np.inf]  # each text once, and all of them
        np.testing.assert_allclose(found, np.sort(log_p[log_p > -np.inf])[::-1], rtol=1e-5)


def test_a_beam_of_width_one_is_greedy():
    """Ranked by reward: the best factor of the possible tokens at every step, from the tables."""
    target = text(constraints={"mood": jnp.array(0)})
    tokens, last, total = [], END, float(np.log(0.6)) - 0.2  # the given mood is likelihood
    for t in range(3):
        gains = np.where(TABLE[0, last] > 0, MILD[t], -np.inf)
        last = int(np.argmax(gains))
        tokens.append(last)
        total += gains[last]
        if last == END:
            break
    choice = BeamSearch(1, Enumerated("token"), _reward).run(KEY, target)
    assert words(choice.choices) == tuple(tokens)
    assert choice.score == pytest.approx(total, abs=1e-5)
    assert choice.ledger.rewards == 3 * len(tokens) == 3 * choice.ledger.passes
    assert choice.ledger.moves == len(tokens)  # only what is kept is written


def check_sampled(search):
    target = text(constraints={"mood": jnp.array(0)})
    choice = search.run(KEY, target)
    spent = choice.ledger
    assert search.run(KEY, target).score == choice.score
    log_p = float(target.log_density({"token": jnp.asarray(choice.choices["token"])}))
    assert choice.score == pytest.approx(log_p, abs=1e-5) and choice.score == max(choice.scores)
    assert spent.moves == spent.rewards and spent.tokens == 2 * spent.moves
    # Each of two beams has three children at first; later the finished ones have none.
    assert spent.moves % 3 == 0 and 6 <= spent.moves <= 18 and 1 <= spent.passes <= 3


def test_sampled_children_and_the_ledger():
    check_sampled(FEW)


@pytest.mark.slow
def test_trees_that_grow_apart():
    check_sampled(DVTS(2, Sampled(3), tokens=_twice))


@pytest.mark.slow
def test_a_batch_of_searches_is_the_searches_one_by_one():
    target = text(constraints={"mood": jnp.array(0)})
    args = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x + 0.1]), target.args)
    constraints = {"mood": jnp.zeros(2, jnp.int32)}
    many = beams_many(BeamSearch(2, 3), KEY, ppl.Target(target.model, args, constraints))
    for i in range(2):
        mine = jax.tree.map(lambda x: x[i], args)  # noqa: B023
        alone = ppl.Target(target.model, mine, target.constraints)
        one = BeamSearch(2, 3).run(jax.random.fold_in(KEY, i), alone)
        np.testing.assert_allclose(many.scores[i], one.scores, atol=1e-5)
        assert many.moves[i] == one.ledger.moves and many.passes[i] == one.ledger.passes
