"""Potentials and their algebra, as weights of a language model's texts, against enumeration."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac import inference, models, ppl
from feynkac.models.finite import MarkovLanguageModel, MarkovLM
from feynkac.ppl.status import NAN

EOS, T = 0, 4
TABLE = np.array([[0.2, 0.4, 0.4], [0.3, 0.6, 0.1], [0.25, 0.0, 0.75]])
LM = MarkovLanguageModel(MarkovLM(jnp.log(jnp.array([0.1, 0.5, 0.4])), jnp.log(TABLE), EOS))


class NoRepeat(ppl.Potential):
    """Weight zero if a token comes twice in a row."""

    guides: bool = eqx.field(static=True, default=True)

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
        if not self.guides:
            return None
        return jnp.where((jnp.arange(3) == state[0]) | ~state[1], -jnp.inf, 0.0)


class Counted(ppl.Potential):
    """Nats for every token 1 on the way, and a bonus at the end if their number is even."""

    each: float = 0.7
    bonus: float = 1.3

    def start(self, length):
        """Nothing counted."""
        return jnp.int32(0)

    def advance(self, state, symbol, context=None):
        """Count."""
        return state + (symbol == 1).astype(jnp.int32)

    def log_prefix(self, state, remaining=None):
        """So far."""
        return self.each * state.astype(float)

    def log_complete(self, state, context=None):
        """With the bonus."""
        return self.log_prefix(state) + jnp.where(state % 2 == 0, self.bonus, 0.0)


class Short(ppl.Potential):
    """At most two tokens, and half a nat for each that may still come: it uses `remaining`."""

    def start(self, length):
        """Nothing written."""
        return jnp.int32(0)

    def advance(self, state, symbol, context=None):
        """Count."""
        return state + 1

    def log_prefix(self, state, remaining=None):
        """Shaped by what remains."""
        left = 0.0 if remaining is None else 0.5 * remaining.astype(float)
        return jnp.where(state <= 2, left, -jnp.inf)

    def log_complete(self, state, context=None):
        """0 or -inf."""
        return jnp.where(state <= 2, 0.0, -jnp.inf)

    def log_next(self, state, remaining=None):
        """Exact."""
        now = self.log_prefix(state, remaining)
        later = self.log_prefix(state + 1, None if remaining is None else remaining - 1)
        gains = jnp.stack([self.log_complete(state), later, later])
        return jnp.where(jnp.isneginf(now), -jnp.inf, gains - jnp.where(jnp.isneginf(now), 0, now))


class Surprise(ppl.Potential):
    """The text's own log probability under the model: p times this is p squared."""

    @property
    def reads_model(self):
        """It reads the logits."""
        return True

    def start(self, length):
        """Nothing."""
        return jnp.zeros(())

    def advance(self, state, symbol, context=None):
        """Add the log probability of the token."""
        return state + jax.nn.log_softmax(context.logits)[symbol].astype(state.dtype)

    def log_prefix(self, state, remaining=None):
        """So far."""
        return state

    def log_complete(self, state, context=None):
        """And that of the end."""
        return self.advance(state, EOS, context)


def no_repeat(text):
    return -np.inf if any(a == b for a, b in itertools.pairwise(text)) else 0.0


def counted(text):
    return 0.7 * text.count(1) + (1.3 if text.count(1) % 2 == 0 else 0.0)


def short(text):
    return 0.0 if len(text) <= 2 else -np.inf


def log_p(text):
    with np.errstate(divide="ignore"):
        return sum(np.log(TABLE[a, b]) for a, b in itertools.pairwise([1, *text, EOS]))


CASES = {
    "guided": (NoRepeat(), no_repeat),
    "weighed": (NoRepeat(False), no_repeat),
    "counted": (Counted(), counted),
    "remaining": (Short(), short),
    "reads the model": (Surprise(), log_p),
    "product": (NoRepeat() * Counted() * Short(), lambda x: no_repeat(x) + counted(x) + short(x)),
    "power": ((NoRepeat() * Counted()) ** 0.5, lambda x: no_repeat(x) + 0.5 * counted(x)),
    "quotient": (NoRepeat() / Counted(), lambda x: no_repeat(x) - counted(x)),
    "guided quotient": (Short() / Short() * Short(), short),
}


def texts():
    """All texts that end within T tokens."""
    for n in range(T):
        yield from (list(x) for x in itertools.product([1, 2], repeat=n))


def log_evidence(weight):
    """Log of the sum over texts of p(x) exp(weight(x))."""
    return np.logaddexp.reduce([log_p(x) + weight(x) for x in texts()])


@jax.jit
def densities(story, rows):
    """Log density of each row of tokens, in one compiled call."""
    target = ppl.Target(story)
    return jax.vmap(lambda row: target.log_density({"token": row}))(rows)


def check_texts(story, weight):
    """The density of every text that ends is p(x) exp(weight(x)); of others it is zero."""
    rows = [(x + [EOS] * T)[:T] for x in texts()]
    rows += [list(x) for x in itertools.product([1, 2], repeat=T)]
    got = np.asarray(densities(story, jnp.array(rows, jnp.int32)))
    want = [log_p(x) + weight(x) for x in texts()]
    np.testing.assert_allclose(got, want + [-np.inf] * 2**T, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_the_target_is_the_model_times_the_complete_weight(case):
    potential, weight = CASES[case]
    check_texts(models.generation(LM, [1], T) * potential, weight)


def test_factors_are_collected_from_left_and_right():
    story = NoRepeat() * models.generation(LM, [1], T) * Counted() ** 0.5
    check_texts(story, lambda x: no_repeat(x) + 0.5 * counted(x))


def test_keep_weighs_what_is_unfinished_by_its_prefix():
    story = models.generation(LM, [1], 2, at_length=ppl.Keep()) * Counted()
    exact = inference.exact.enumerate(story)
    ended = [log_p(x) + counted(x) for x in ([], [1], [2])]
    unfinished = [
        np.log(TABLE[1, a]) + np.log(TABLE[a, b]) + 0.7 * [a, b].count(1)
        for a, b in itertools.product([1, 2], repeat=2)
        if TABLE[a, b] > 0
    ]
    want = np.logaddexp.reduce(ended + unfinished)
    assert np.isclose(exact.log_evidence, want, atol=1e-5)


def test_smc_is_unbiased_and_guided_draws_obey():
    potential, weight = CASES["product"]
    story = models.generation(LM, [1], T) * potential
    keys = jax.random.split(jax.random.key(3), 2000)
    runs = jax.jit(jax.vmap(lambda key: inference.SMC(4).run(key, story)))(keys)
    ratio = np.exp(np.asarray(runs.log_evidence) - log_evidence(weight))
    z = (ratio.mean() - 1) / (ratio.std() / np.sqrt(ratio.size))
    assert abs(z) < 4
    alive = np.isfinite(np.asarray(runs.log_weights))
    tokens, lengths = np.asarray(runs.choices["token"])[alive], np.asarray(runs.lengths)[alive]
    assert alive.mean() > 0.2
    for row, length in zip(tokens, lengths, strict=True):
        assert row[length - 1] == EOS and weight(row[: length - 1].tolist()) > -np.inf


def test_the_state_is_replayed():
    story = models.generation(LM, [1], T) * (NoRepeat() * Counted())
    choices = {"token": jnp.array([1, 2, 1, EOS], jnp.int32)}
    for t in range(T + 1):
        t = jnp.int32(t)
        by_pass = story.replay(choices, t)
        by_scan = eqx.tree_at(
            lambda m: m.replayer, story, None, is_leaf=lambda x: x is story.replayer
        ).replay(choices, t)
        assert jax.tree.all(jax.tree.map(np.array_equal, by_pass.carried, by_scan.carried))
        assert bool(by_pass.ended) == bool(by_scan.ended)


def test_nan_of_one_particle_loses_no_other():
    class Broken(Counted):
        def log_prefix(self, state, remaining=None):
            return jnp.where(state == 2, jnp.nan, 0.0)

    story = models.generation(LM, [1], T) * Broken()
    particles = inference.SMC(64).run(jax.random.key(0), story)
    assert int(particles.status.code) == NAN
    assert np.isnan(particles.log_evidence)
    weights = np.asarray(particles.log_weights)
    tokens, lengths = np.asarray(particles.choices["token"]), np.asarray(particles.lengths)
    assert np.isfinite(weights).sum() > 16
    for i in np.flatnonzero(np.isfinite(weights)):
        assert (tokens[i, : lengths[i]] == 1).sum() < 2


def test_errors_say_what_to_do():
    with pytest.raises(ppl.ProgramError, match="one number"):
        Counted() ** jnp.ones(2)
    with pytest.raises(TypeError):
        Counted() * 2.0

    class Small(NoRepeat):
        def log_next(self, state, remaining=None):
            return jnp.zeros(7)

    with pytest.raises(ppl.ProgramError, match="over"):
        inference.SMC(2).run(jax.random.key(0), models.generation(LM, [1], T) * Small())
