"""Several calls in one program, against products of the calls' laws by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac import inference, ppl
from feynkac.models.finite import MarkovLanguageModel, MarkovLM
from feynkac.models.language import Tokenizer, from_callable, random_llama
from feynkac.models.language.calls import chat_pieces, conversation, reprompt, told_by
from feynkac.models.language.passages import Passage, passage
from feynkac.models.language.step_rewards import StepReward

EOS = 0
TABLE = np.array([[0.1, 0.5, 0.4], [0.3, 0.5, 0.2], [0.25, 0.35, 0.4]])
MARKOV = MarkovLanguageModel(MarkovLM(jnp.log(TABLE[0]), jnp.log(TABLE), EOS))


def bag(tokens):
    """Next-token logits by the numbers of each token so far: they see every token that is read."""
    counts = np.bincount(np.asarray(tokens, int), minlength=3)
    return np.array([0.3, -0.2, 0.1]) + MIX @ counts


MIX = np.array([[0.4, 0.2, -0.5], [-0.3, 0.5, 0.4], [0.6, -0.4, 0.3]])


def _apply(params, tokens):
    counts = jnp.cumsum(jax.nn.one_hot(tokens, 3), axis=0)
    return jnp.array([[0.3, -0.2, 0.1]]) + counts @ params.T


BAG = from_callable(_apply, jnp.asarray(MIX, float), vocab_size=3, eos=EOS, context=40)


def log_p(context, text, size):
    """A passage of at most `size` tokens after a context, by the bag; ends with EOS if shorter."""
    whole = [*text, EOS] if len(text) < size else list(text)
    total, so_far = 0.0, list(context)
    for token in whole:
        logits = bag(so_far)
        total += logits[token] - np.logaddexp.reduce(logits)
        so_far.append(token)
    return total


def passages(size):
    for n in range(size + 1):
        yield from itertools.product([1, 2], repeat=n)


def reward(step):
    """0.8 nats for each token 2 but in the first turn."""
    twos = jnp.sum(step.tokens == 2).astype(float)
    return jnp.where(step.number > 0, 0.8 * twos, 0.0)


def remarked():
    return conversation(BAG, [1], [[0, 2, 2]], 2) * StepReward(reward)


def test_turns_see_all_that_was_said():
    """Draft, remark, revision: the revision is weighed, the draft's posterior knows it."""
    exact = inference.exact.enumerate(remarked())
    want = {}
    for one, two in itertools.product(passages(2), repeat=2):
        log_w = log_p([1], one, 2) + log_p([1, *one, 0, 2, 2], two, 2) + 0.8 * two.count(2)
        want[one, two] = log_w
    assert np.isclose(exact.log_evidence, np.logaddexp.reduce(list(want.values())), atol=1e-5)
    rows = zip(exact.choices["token"], exact.happened["token"], exact.log_probs, strict=True)
    for row, happened, log_prob in rows:
        pair = [np.asarray(r)[h].tolist() for r, h in zip(row, happened, strict=True)]
        one, two = (tuple(x[:-1] if x[-1:] == [EOS] else x) for x in pair)
        assert np.isclose(log_prob + exact.log_evidence, want[one, two], atol=1e-5)


@pytest.mark.slow
def test_filters_over_turns_are_properly_weighted():
    smc = inference.SMC(3, inference.Systematic(ess_threshold=0.9))
    result = ppl.laws.proper_weighting(jax.random.key(0), smc, remarked(), runs=2**12)
    assert result.ok, result


def _think(ctx, state, t, lm):
    prefix = reprompt(lm, [[1], state, [2, 1]])
    new = ctx.call("thought", passage(lm, 2), prefix)
    ctx.factor("good", 0.5 * new.count.astype(float))
    return new


def _empty(ctx, lm):
    return Passage(jnp.zeros(2, jnp.int32), jnp.int32(0), jnp.zeros((), bool))


def summaries():
    return ppl.bind(ppl.StateSpace(_empty, _think, 2), BAG)


def test_a_markov_program_is_prompted_with_its_state_only():
    exact = inference.exact.enumerate(summaries())
    total = [
        log_p([1, 2, 1], one, 2) + log_p([1, *one, 2, 1], two, 2) + 0.5 * (len(one) + len(two))
        for one, two in itertools.product(passages(2), repeat=2)
    ]
    assert len(total) == len(exact.log_probs)
    assert np.isclose(exact.log_evidence, np.logaddexp.reduce(total), atol=1e-5)


@pytest.mark.slow
def test_a_retained_particle_takes_its_passages():
    draw = {"thought": {"token": jnp.array([[1, 2], [2, 0]], jnp.int32)}}
    particles = inference.SMC(4).run_conditional(jax.random.key(0), summaries(), draw)
    kept = jax.tree.map(lambda x: x[particles.position], particles.choices)
    jax.tree.map(np.testing.assert_array_equal, kept, draw)


@pytest.mark.slow
def test_draft_critique_revise_as_one_program():
    """Calls with prompts made of earlier texts, in one program; a decoder."""
    lm = random_llama(jax.random.key(0), 3, d=8, heads=2, kv_heads=1)

    @ppl.program
    def revised(ctx, lm):
        draft = ctx.call("draft", passage(lm, 3), lm.prompt([1]))
        critique = ctx.call("critique", passage(lm, 2), reprompt(lm, [[2], draft, [1]]))
        return ctx.call("revision", passage(lm, 3), reprompt(lm, [draft, [2], critique, [1, 1]]))

    program = ppl.bind(revised, lm)
    trace = program.simulate(jax.random.key(3))
    total, pieces = 0.0, {}
    for name in ("draft", "critique", "revision"):
        happened = np.asarray(trace.active[name]["token"])
        pieces[name] = np.asarray(trace.choices[name]["token"])[happened].tolist()
    text = {name: [x for x in ids if x != EOS] for name, ids in pieces.items()}
    prompts = {
        "draft": [1],
        "critique": [2, *text["draft"], 1],
        "revision": [*text["draft"], 2, *text["critique"], 1, 1],
    }
    for name, ids in pieces.items():
        total += jnp.sum(lm.log_probs(lm.prompt(prompts[name]), jnp.asarray(ids, jnp.int32)))
    assert np.isclose(trace.score, total, atol=1e-4)


def test_chat_pieces_and_what_is_told():
    lm = random_llama(jax.random.key(0), 300, d=8, heads=2, tokenizer=_chat_tokenizer())
    assert told_by(lm, "b") == "<end>\nuser: b<end>\nassistant: "
    written = Passage(jnp.zeros(2, jnp.int32), jnp.int32(1), jnp.zeros((), bool))
    pieces = chat_pieces(lm, [{"role": "user", "content": ["a ", written, " b"]}])
    assert pieces[0] == "user: a " and pieces[1] is written
    assert pieces[2] == " b<end>\nassistant: "
    with pytest.raises(ValueError, match="no tokenizer"):
        chat_pieces(MARKOV, [])
    with pytest.raises(ppl.ProgramError, match="reprompt"):
        passage(MARKOV, 2).simulate(jax.random.key(0))
    with pytest.raises(ValueError, match="turn_tokens=0"):
        conversation(MARKOV, [1], [], 0)


def _chat_tokenizer():
    import tokenizers

    core = tokenizers.Tokenizer(tokenizers.models.BPE({"<end>": 0, "a": 1}, []))
    core.add_special_tokens(["<end>"])
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<end>\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return Tokenizer(core, eos=0, chat_template=template)
