"""Text in steps: the law of generation, cut into steps; against enumeration by hand."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from feynkac import inference, models, ppl
from feynkac.inference.mcmc import Repeat, Suffix
from feynkac.models.finite import MarkovLanguageModel, MarkovLM
from feynkac.models.language import Tokenizer
from feynkac.models.language.delimiters import byte_automaton, delimiter_table
from feynkac.models.language.fusion import LanguageModelPotential
from feynkac.models.language.host_step_rewards import HostStepReward, HostStepValue
from feynkac.models.language.random_llama import random_llama
from feynkac.models.language.step_reading import step_texts
from feynkac.models.language.step_rewards import StepReward, StepValue
from feynkac.models.language.steps import stepwise
from feynkac.ppl.laws.proper_weighting import weighting
from feynkac.ppl.laws.result import decide
from feynkac.ppl.status import NAN, OK

EOS, A, STOP = 0, 1, 2
TABLE = np.array([[0.1, 0.5, 0.4], [0.3, 0.5, 0.2], [0.25, 0.35, 0.4]])
LM = MarkovLanguageModel(MarkovLM(jnp.log(TABLE[0]), jnp.log(TABLE), EOS))
VOCABULARY = models.Vocabulary([b"", b"a", b"."], EOS)
ENDS = delimiter_table(VOCABULARY, ".")


class Short(ppl.Potential):
    """At most three tokens, 0.4 nats for each a; before the end shaped by what remains."""

    guides: bool = eqx.field(static=True, default=True)

    def start(self, length):
        """Tokens, and nats."""
        return jnp.int32(0), jnp.zeros(())

    def advance(self, state, symbol, context=None):
        """Count."""
        return state[0] + 1, state[1] + jnp.where(symbol == A, 0.4, 0.0)

    def log_prefix(self, state, remaining=None):
        """With a bonus for room."""
        left = 0.0 if remaining is None else 0.3 * remaining.astype(float)
        return jnp.where(state[0] <= 3, state[1] + left, -jnp.inf)

    def log_complete(self, state, context=None):
        """0.4 nats for each a."""
        return jnp.where(state[0] <= 3, state[1], -jnp.inf)

    def log_next(self, state, remaining=None):
        """Right up to a constant; weights see to the rest."""
        if not self.guides:
            return None
        return jnp.where(state[0] < 3, jnp.array([0.0, 0.4, 0.1]), jnp.array([0.0, -jnp.inf, 0.0]))


def reward(step):
    """Of a step: by its number, its length and its first token."""
    first = (step.tokens[0] == A).astype(float)
    return 0.5 * step.count.astype(float) - 0.7 * first - 0.2 * step.number.astype(float)


def value(step):
    """Of a text: by its length and whether it has ended."""
    return jnp.where(step.ended, 0.6, -0.3) + 0.1 * step.length.astype(float)


def cut(text, step_tokens):
    """The steps of a text of A and STOP."""
    out = [[]]
    for token in text:
        if out[-1] and (out[-1][-1] == STOP or len(out[-1]) == step_tokens):
            out.append([])
        out[-1].append(token)
    return [x for x in out if x]


def log_p(text, ended):
    path = [1, *text, *([EOS] if ended else [])]
    return sum(np.log(TABLE[a, b]) for a, b in itertools.pairwise(path))


def written(row, happened):
    """The text of one row of choices [T, L], and whether it ended."""
    flat = np.asarray(row)[np.asarray(happened)].tolist()
    return (flat[:-1], True) if flat and flat[-1] == EOS else (flat, False)


def oracle(text, ended, step_tokens):
    """Log weight of a text under Short, reward and value, besides p."""
    total = 0.4 * text.count(A) if len(text) <= 3 else -np.inf
    pieces = cut(text, step_tokens)
    for number, piece in enumerate(pieces):
        total += 0.5 * len(piece) - 0.7 * (piece[0] == A) - 0.2 * number
    return total + 0.1 * len(text) + (0.6 if ended else -0.3)


@pytest.fixture(scope="module")
def weighed():
    story = stepwise(LM, [1], 3, 2, ENDS) * Short() * StepReward(reward)
    return story * (StepValue(value) ** 2.0) ** 0.5


@pytest.fixture(scope="module")
def exact(weighed):
    return inference.exact.enumerate(weighed)


def test_the_law_is_that_of_generation_cut_into_steps():
    exact = inference.exact.enumerate(stepwise(LM, [1], 2, 3, ENDS))
    assert np.isclose(exact.log_evidence, 0.0, atol=1e-6)
    seen = set()
    rows = zip(exact.choices["token"], exact.happened["token"], exact.log_probs, strict=True)
    for row, happened, log_prob in rows:
        text, ended = written(row, happened)
        seen.add((tuple(text), ended))
        np.testing.assert_allclose(log_prob, log_p(text, ended), atol=1e-5)
        pieces = [np.asarray(r)[h].tolist() for r, h in zip(row, happened, strict=True)]
        want = cut(text, 3)
        if ended:  # the end belongs to a step that is not over, else it is one of its own
            whole = bool(want) and (want[-1][-1] == STOP or len(want[-1]) == 3)
            want = [*want, [EOS]] if whole or not want else [*want[:-1], [*want[-1], EOS]]
        assert [p for p in pieces if p] == want
    assert len(seen) == len(exact.log_probs)


def test_weights_of_tokens_and_steps_by_hand(exact):
    """Short is told what remains, which a short step makes less: it has to telescope."""
    total = -np.inf
    rows = zip(exact.choices["token"], exact.happened["token"], exact.log_probs, strict=True)
    for row, happened, log_prob in rows:
        text, ended = written(row, happened)
        log_w = log_p(text, ended) + oracle(text, ended, 2)
        assert ended and np.isclose(log_prob + exact.log_evidence, log_w, atol=1e-4)
        total = np.logaddexp(total, log_w)
    assert np.isclose(total, exact.log_evidence, atol=1e-5)
    texts = [t for n in range(4) for t in itertools.product([A, STOP], repeat=n) if _fits(t, 3, 2)]
    assert len(texts) == len(exact.log_probs)


def _fits(text, max_steps, step_tokens):
    pieces = cut(list(text), step_tokens)
    whole = bool(pieces) and (pieces[-1][-1] == STOP or len(pieces[-1]) == step_tokens)
    return len(pieces) + (whole or not pieces) <= max_steps


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [None, Repeat(Suffix(), 1)])
def test_smc_is_properly_weighted(exact, kernel):
    """The kernel writes the steps from a random one on anew."""
    smc = inference.SMC(3, inference.Systematic(ess_threshold=0.9), kernel=kernel)
    measure = weighting(smc, exact.target, exact)
    decide("proper weighting", measure, jax.random.key(1), 2**12, "").check()


def test_draws_at_another_temperature_leave_the_density(exact):
    hot = stepwise(LM, [1], 3, 2, ENDS, drawn_at=jnp.array([2.0, 0.7])) * Short(False)
    hot = hot * StepReward(reward) * StepValue(value)
    target = ppl.Target(hot)
    density = jax.jit(jax.vmap(target.log_density))(exact.choices)
    np.testing.assert_allclose(density, exact.log_probs + exact.log_evidence, atol=1e-4)


@pytest.mark.slow
def test_hot_draws_have_the_evidence(exact):
    hot = stepwise(LM, [1], 3, 2, ENDS, drawn_at=jnp.array([2.0, 0.7])) * Short(False)
    hot = hot * StepReward(reward) * StepValue(value)
    smc = inference.SMC(4)
    result = ppl.laws.unbiased_evidence(jax.random.key(2), smc, hot, exact.log_evidence, runs=2**12)
    assert result.ok, result
    particles = smc.run(jax.random.key(3), hot)
    for i in range(4):
        count, ends = int(particles.state.count[i]), np.asarray(particles.state.ends[i])
        row = np.asarray(particles.choices["token"][i])
        flat = np.asarray(particles.state.tokens[i])
        for t, (a, b) in enumerate(itertools.pairwise([0, *ends[: particles.lengths[i]]])):
            np.testing.assert_array_equal(flat[a:b], row[t, : b - a])
        assert count == ends.max(initial=0) and not flat[count:].any()


@pytest.fixture(scope="module")
def fused():
    """Two real caches: particles wait in the middle of the text, at other slots each.

    The end is token 2, so that the zeros of what did not happen are text.
    """
    one, two = (random_llama(jax.random.key(i), 3, d=8, heads=2, kv_heads=1, eos=2) for i in (1, 2))
    ends = delimiter_table(models.Vocabulary([b"a", b".", b""], 2), ".")
    story = stepwise(one, [1, 2], 3, 4, ends, temperature=0.9, at_length=ppl.Keep())
    return one, two, story * LanguageModelPotential(two, [2], 1.5) ** 0.5


@pytest.mark.slow
def test_waiting_particles_keep_their_caches(fused):
    one, two, story = fused
    particles = inference.SMC(16).run(jax.random.key(0), story)
    assert particles.status.code == OK

    @eqx.filter_jit
    def both(one, two, story, particles):
        """The density that the program says, and that of a pass over the tokens of each model."""
        state = particles.state
        place = jnp.arange(state.tokens.shape[1], dtype=jnp.int32)
        end = jnp.where(state.ended, state.count + 1, state.count)
        tokens = jnp.where(place[None] < state.count[:, None], state.tokens, one.eos)

        def scored(lm, prefix, temperature):
            def one(tokens):
                logits = jax.vmap(lambda n: lm.replay(prefix, tokens, n, 12).logits)(place)
                log_probs = jax.nn.log_softmax(logits / temperature)
                return jnp.take_along_axis(log_probs, tokens[:, None], axis=1)[:, 0]

            each = jax.vmap(one)(tokens)
            return jnp.sum(jnp.where(place[None] < end[:, None], each, 0.0), axis=1)

        want = scored(one, one.prompt([1, 2]), 0.9) + 0.5 * scored(two, two.prompt([2]), 1.5)
        return jax.vmap(ppl.Target(story).log_density)(particles.choices), want

    said, want = both(one, two, story, particles)
    np.testing.assert_allclose(said, want, atol=2e-4)
    assert len({tuple(x) for x in np.asarray(particles.state.ends).tolist()}) > 4


def _spoken():
    """The model with texts."""
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<end>": 0, "a": 1, ".": 2}, "a"))
    core.add_special_tokens(["<end>"])
    law = MarkovLM(jnp.log(TABLE[0]), jnp.log(TABLE), EOS)
    return MarkovLanguageModel(law, tokenizer=Tokenizer(core, eos=EOS))


def by_step(text):
    if text == "a.":
        raise ValueError("I do not like it")
    return 0.3 * len(text)


def by_text(text):
    return 0.1 * len(text) - 0.4 * text.startswith("a")


@pytest.mark.slow
def test_python_functions_weigh_steps():
    """One call a distinct text; where it fails one particle is lost, and only that."""
    lm = _spoken()
    rewards = HostStepReward(by_step), HostStepValue(by_text) ** 2.0
    story = stepwise(lm, [1], 3, 2, ".") * rewards[0] * rewards[1]
    particles = inference.SMC(32, None).run(jax.random.key(0), story)
    pieces = [
        ["".join(" a."[int(x)] for x in row[row > 0]) for row in rows]
        for rows in np.asarray(particles.choices["token"])
    ]
    lost = ["a." in p for p in pieces]
    want = [sum(0.3 * len(x) for x in p) + 2 * by_text("".join(p)) for p in pieces]
    assert any(lost) and not all(lost)
    np.testing.assert_allclose(
        np.asarray(particles.log_weights), np.where(lost, np.nan, want), atol=1e-5
    )
    assert particles.status.code == NAN and list(rewards[0].failures) == ["a."]
    assert rewards[0].calls == len({x for p in pieces for x in p if x})
    kept = particles.take(jnp.flatnonzero(~np.array(lost)), jnp.zeros(32 - sum(lost)))
    readings = step_texts(lm, kept)
    assert np.isclose(sum(r.probability for r in readings), 1.0)
    told = {tuple(x for x in p if x) for p, bad in zip(pieces, lost, strict=True) if not bad}
    assert {r.steps for r in readings} == told


def test_a_delimiter_may_begin_and_end_within_tokens():
    rng = np.random.default_rng(0)
    for _ in range(40):
        patterns = [bytes(rng.choice(list(b"ab"), rng.integers(1, 4))) for _ in range(2)]
        raw = [b""] + [bytes(rng.choice(list(b"abc"), rng.integers(1, 4))) for _ in range(5)]
        table = np.asarray(delimiter_table(models.Vocabulary(raw, 0), patterns))
        state, text = 0, b""
        for token in rng.integers(0, 6, 10):
            state, text = table[state, token], text + raw[token]
            assert (state == len(table) - 1) == any(p in text for p in patterns)
    assert byte_automaton([b"a", b"a"]).shape == (2, 256)
    with pytest.raises(ValueError, match="at least one byte"):
        delimiter_table(VOCABULARY, [""])


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="max_steps=0"):
        stepwise(LM, [1], 0, 2, ENDS)
    with pytest.raises(ValueError, match="one for each of the 2"):
        stepwise(LM, [1], 2, 2, ENDS, temperature=[1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="no tokenizer"):
        stepwise(LM, [1], 2, 2, "\n")
    story = stepwise(LM, [1], 2, 2, ENDS)
    with pytest.raises(ppl.ProgramError, match="2 tokens"):
        story.step.run(None, {"token": ppl.Partial(jnp.zeros(3, jnp.int32))}, _arguments(story))
    with pytest.raises(ppl.ProgramError, match="one float"):
        (story * StepReward(lambda step: step.tokens)).simulate(jax.random.key(0))


def _arguments(story):
    state = story.start(jax.random.key(0), {}, ()).retval
    return (state, jnp.int32(0), *story.bound)
