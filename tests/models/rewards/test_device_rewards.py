"""Verifier, process rewards, judge, certainty and reward heads, against enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from feynkac import inference, models, ppl
from feynkac.models import learned
from feynkac.models.finite import MarkovLanguageModel, MarkovLM
from feynkac.models.language import Tokenizer, Vocabulary, random_llama
from feynkac.models.language.units import Steps
from feynkac.models.rewards.certainty import Perplexity, SelfCertainty
from feynkac.models.rewards.head import RewardHead, hidden_states, learn_reward_head
from feynkac.models.rewards.judge import Judge
from feynkac.models.rewards.process import Score, StepProduct, Telescoping
from feynkac.models.rewards.verifier import Verifier

EOS, T = 0, 4
TABLE = np.array([[0.2, 0.4, 0.4], [0.3, 0.6, 0.1], [0.25, 0.15, 0.6]])
LM = MarkovLanguageModel(MarkovLM(jnp.log(TABLE[0]), jnp.log(TABLE), EOS))
VOCABULARY = Vocabulary([b"", b"a", b"\n"], EOS)
SCORES = np.array([0.0, 0.7, -0.4])
ASKED = 2


def pairs(text):
    return list(itertools.pairwise([1, *text, EOS]))


def log_p(text):
    return sum(np.log(TABLE[a, b]) for a, b in pairs(text))


def texts():
    for n in range(T):
        yield from (list(x) for x in itertools.product([1, 2], repeat=n))


class Ones(ppl.Potential):
    """Right: the number of tokens 1 is even and not above 2; draws are guided."""

    def start(self, length):
        return jnp.zeros((), jnp.int32)

    def advance(self, state, symbol, context=None):
        return state + (symbol == 1).astype(jnp.int32)

    def log_prefix(self, state, remaining=None):
        return jnp.where(state <= 2, 0.0, -jnp.inf)

    def log_complete(self, state, context=None):
        return jnp.where((state == 0) | (state == 2), 0.0, -jnp.inf)

    def log_next(self, state, remaining=None):
        after = jnp.stack([self.log_complete(state), *(
            self.log_prefix(state + i) for i in (1, 0))])  # fmt: skip
        return jnp.where(state <= 2, after, -jnp.inf)


def right(text):
    return text.count(1) in (0, 2)


def verdict(tpr, fpr):
    def weight(text):
        with np.errstate(divide="ignore"):
            return np.log(tpr if right(text) else fpr)

    return weight


def certainty(text):
    return np.mean([-np.log(3 * TABLE[a]).mean() for a, _ in pairs(text)])


def judged(text):
    asked = [1, 1, *text, ASKED]
    return np.log(TABLE[asked[-1], 1] / (TABLE[asked[-1], 1] + TABLE[asked[-1], 0]))


def by_steps(text):
    """Sizes of the steps (lines) of a text."""
    return [len(u) for u in "".join("_a\n"[i] for i in text).split("\n") if u]


LENGTHS = Score(lambda unit, scale: unit.length.astype(float) * scale, jnp.asarray(0.3))
CASES = {
    "verifier": (Verifier(Ones(), 0.9, 0.2), verdict(0.9, 0.2)),
    "strict verifier": (Verifier(Ones(), 0.9, 0.0), verdict(0.9, 0.0)),
    "rejected": (Verifier(Ones(), 1.0, 0.2, accepted=False), verdict(0.0, 0.8)),
    "product": (StepProduct(Score(lambda a: jnp.asarray(SCORES)[a])), lambda x: SCORES[x].sum()),
    "telescoping": (
        Telescoping(Score(lambda a: jnp.asarray(SCORES)[a])),
        lambda x: SCORES[x[-1]] if x else 0.0,
    ),
    "steps": (
        Steps(StepProduct(LENGTHS), "\n", 4).over(VOCABULARY),
        lambda x: 0.3 * sum(by_steps(x)),
    ),
    "last step": (
        Steps(Telescoping(LENGTHS), "\n", 4).over(VOCABULARY),
        lambda x: 0.3 * (by_steps(x) or [0])[-1],
    ),
    "certainty": (SelfCertainty(), certainty),
    "perplexity": (Perplexity() ** 2.0, lambda x: 2 * log_p(x) / (len(x) + 1)),
    "judge": (Judge(LM, ([1], [ASKED]), 1, against=0), judged),
    "certain judge": (
        Judge(LM, ([1], [ASKED]), 1, against=0) ** 0.5 * SelfCertainty(),
        lambda x: 0.5 * judged(x) + certainty(x),
    ),
}


def test_every_reward_has_its_law():
    story = {name: models.generation(LM, [1], T) * p for name, (p, _) in CASES.items()}
    every = list(texts())
    rows = jnp.asarray([(x + [EOS] * T)[:T] for x in every], jnp.int32)

    @jax.jit
    def densities(rows):
        return {
            name: jax.vmap(lambda row, s=s: ppl.Target(s).log_density({"token": row}))(rows)
            for name, s in story.items()
        }

    found = densities(rows)
    for name, (_, weight) in CASES.items():
        want = np.array([log_p(x) + weight(x) for x in every])
        np.testing.assert_allclose(found[name], want, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_filters_are_unbiased():
    names = ["verifier", "certain judge", "last step"]
    keys = jax.random.split(jax.random.key(0), 1500)
    for name in names[:2]:
        potential, weight = CASES[name]
        story = models.generation(LM, [1], T) * potential
        runs = jax.jit(jax.vmap(lambda key, s=story: inference.SMC(4).run(key, s)))(keys)
        want = np.logaddexp.reduce([log_p(x) + weight(x) for x in texts()])
        ratio = np.exp(np.asarray(runs.log_evidence) - want)
        assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(ratio.size), name
        if name == "verifier":
            _ceiling(runs)


def _ceiling(runs):
    """P(right | accepted) = p tpr / (p tpr + (1 - p) fpr), what resampling can reach at most."""
    ended = [x for x in texts()]
    log_ps = np.array([log_p(x) for x in ended])
    p = np.exp(log_ps[[right(x) for x in ended]]).sum() / np.exp(log_ps).sum()
    tokens, weights = np.asarray(runs.choices["token"]), np.exp(np.asarray(runs.log_weights))
    written = np.cumsum(tokens == EOS, -1) == 0
    good = np.isin(((tokens == 1) & written).sum(-1), [0, 2])
    top, bottom = (weights * good).mean(1), weights.mean(1)
    want = 0.9 * p / (0.9 * p + 0.2 * (1 - p))
    gap = top - want * bottom
    assert abs(gap.mean()) < 4 * gap.std() / np.sqrt(len(gap))


@pytest.mark.slow
def test_a_head_learns_what_the_hidden_state_tells():
    lm = random_llama(jax.random.key(0), 6, d=16, context=32)
    rng = np.random.default_rng(0)
    tokens, counts = rng.integers(1, 6, (256, 5)), rng.integers(1, 6, 256)
    labels = np.array([row[n - 1] in (2, 3) for row, n in zip(tokens, counts, strict=True)], float)
    hidden = hidden_states(lm, [1], tokens, counts)
    assert hidden.shape == (256, 16)
    head = learn_reward_head(jax.random.key(1), hidden[:192], labels[:192], width=8)
    guess = jax.vmap(head.logit)(hidden[192:]) > 0
    assert (np.asarray(guess) == (labels[192:] > 0)).mean() > 0.9
    story = models.generation(lm, [1], 5) * head**4.0

    def densities(row):
        target = ppl.Target(story).log_density({"token": row})
        return target - ppl.Target(models.generation(lm, [1], 5)).log_density({"token": row})

    rows = jnp.asarray([[1, 2, 0, 0, 0], [3, 1, 0, 0, 0]], jnp.int32)
    gains = jax.jit(jax.vmap(densities))(rows)
    states = hidden_states(lm, [1], np.asarray(rows), np.array([2, 2]))
    want = 4 * jax.nn.log_sigmoid(jax.vmap(head.logit)(states))
    np.testing.assert_allclose(gains, want, atol=1e-3)
    assert gains[0] > gains[1] + 1


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="between 0 and 1"):
        Verifier(Ones(), 1.5, 0.0)
    with pytest.raises(ValueError, match="generation"):
        Perplexity(EOS).log_complete(Perplexity(EOS).start(2))
    with pytest.raises(ValueError, match="token ids"):
        Judge(LM, "Is {text} good?", 1)
    with pytest.raises(ValueError, match="0 to 2"):
        Judge(LM, ([1], [2]), 7)
    head = RewardHead(learned.head(jax.random.key(0), 2))
    with pytest.raises(ValueError, match="hidden"):
        head.log_complete(head.start(1), models.Text.start(LM, LM.prompt([1]), 2))
    broken = Verifier(Score(lambda a: jnp.nan), 0.9, 0.1)
    assert np.isnan(broken.log_complete(broken.advance(broken.start(1), jnp.int32(1))))


def test_a_template_is_cut_at_the_text():
    core = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"<end>": 0, "a": 1, "b": 2}, unk_token="a")
    )
    core.add_special_tokens(["<end>"])
    law = MarkovLM(jnp.log(TABLE[0]), jnp.log(TABLE), EOS)
    lm = MarkovLanguageModel(law, tokenizer=Tokenizer(core, eos=EOS))
    by_text, by_ids = Judge(lm, "a{text}b", ["a"], against="<end>"), CASES["judge"][0]
    assert by_text.after.tolist() == [2] and by_text.answers.tolist() == [1]
    assert int(by_text.before.length) == 1 and by_text.against.tolist() == [0]
    state = by_text.advance(by_text.start(T), jnp.int32(2))
    assert np.isclose(by_text.log_complete(state), by_ids.log_complete(state))
    for template, answer, said in (
        ("no place", "a", "once"),
        ("a{text}b{text}", "a", "once"),
        ("a{text}b", "", "0 tokens"),
        ("a{text}b", [], "at least one"),
    ):
        with pytest.raises(ValueError, match=said):
            Judge(lm, template, answer)
    with pytest.raises(ValueError, match="different tokens"):
        by_text.over(VOCABULARY)
