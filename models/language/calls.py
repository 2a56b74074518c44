"""Several calls of a language model in one program: turns of one conversation, prompts made anew.

Two ways, with different laws. `conversation` goes on in one context, a turn a step: what was said
stays in the model's memory. `reprompt` reads a new prompt in which earlier texts are quoted: the
model knows what is quoted and nothing else, so that a program whose state is a short text is a
Markov chain (Teng et al. 2025, "Atom of thoughts for Markov LLM test-time scaling").
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from ...ppl.generative import PLAIN, GenerativeFunction, Outcome, Request
from ...ppl.hot import Hot
from ...ppl.partial import Given
from ...ppl.state_space import StateSpace
from .passages import Laws, Passage, outcome, write_passage
from .protocol import LanguageModel, Prefix, Prompt
from .step_rewards import Step, StepPotential
from .vocabulary import Vocabulary

Piece = str | Sequence[int] | Passage | Array


def reprompt(lm: LanguageModel, pieces: Sequence[Piece], bucket: int = 16) -> Prefix:
    """A prompt put together inside a program: given texts, and passages that were written in it.

    `pieces` are texts (for a model with a tokenizer), token ids and `Passage`s, joined in order;
    for a chat see `chat_pieces`. It is read in one pass, by each particle its own: memory and time
    are those of a prompt a particle, padded to a multiple of `bucket` tokens.
    """
    parts = [_part(lm, piece) for piece in pieces]
    size = sum(tokens.shape[0] for tokens, _ in parts)
    if not size:
        raise ValueError("a prompt has at least one token: give a piece that is not empty")
    size = min(-(-size // bucket) * bucket, lm.context)
    joined, at = jnp.zeros(size, jnp.int32), jnp.zeros((), jnp.int32)
    for tokens, count in parts:
        index = jnp.arange(tokens.shape[0], dtype=jnp.int32)
        place = jnp.where(index < count, at + index, size)
        joined, at = joined.at[place].set(tokens, mode="drop"), at + count
    return lm.prefill(joined, at)


def _part(lm: LanguageModel, piece: Piece) -> tuple[Array, Array]:
    if isinstance(piece, Passage):
        return piece.tokens, piece.count
    if isinstance(piece, str):
        if lm.tokenizer is None:
            raise ValueError("this model has no tokenizer: give the pieces as lists of token ids")
        piece = lm.tokenizer.encode(piece)
    tokens = jnp.asarray(piece, jnp.int32)
    return tokens, jnp.int32(tokens.shape[0])


_MARK = "\u241e"


def chat_pieces(lm: LanguageModel, messages: Sequence[dict[str, Any]]) -> list[Piece]:
    """The pieces of a chat prompt in which the content of some messages are `Passage`s.

    The text between them is that of the model's chat template, open for its answer. A content
    may also be a list of texts and passages.
    """
    if lm.tokenizer is None:
        raise ValueError("this model has no tokenizer, so no chat template: give pieces yourself")
    contents = [m["content"] for m in messages]
    flat = [c if isinstance(c, list) else [c] for c in contents]
    texts = ["".join(x if isinstance(x, str) else _MARK for x in content) for content in flat]
    if any(_MARK in x for content in flat for x in content if isinstance(x, str)):
        raise ValueError(f"the character {_MARK!r} marks passages: leave it out of the messages")
    rendered = lm.tokenizer.chat(
        [{**m, "content": text} for m, text in zip(messages, texts, strict=True)]
    )
    between = rendered.split(_MARK)
    passages = [x for content in flat for x in content if not isinstance(x, str)]
    if len(between) != len(passages) + 1:
        raise ValueError("the chat template drops or repeats a message that holds a passage")
    pieces: list[Piece] = [between[0]]
    for one, text in zip(passages, between[1:], strict=True):
        pieces += [one, text]
    return [p for p in pieces if not (isinstance(p, str) and not p)]


class Conversation(eqx.Module):
    """The state of a particle in a conversation.

    `tokens` [turns, turn_tokens] of its own turns, `counts` [turns] how many of each are text.
    """

    hot: Hot
    last: Int[Array, ""]
    tokens: Int[Array, "K L"]
    counts: Int[Array, "K"]
    values: Any


def _start(ctx, laws, rewards, given_tokens, given_counts, sizes):
    turns, turn_tokens = sizes
    room = turns * turn_tokens + given_tokens.size
    state = laws.lm.start(laws.prefix, room, gaps=True)
    tokens, counts = jnp.zeros((turns, turn_tokens), jnp.int32), jnp.zeros(turns, jnp.int32)
    values = tuple(reward.start() for reward in rewards)
    return Conversation(Hot(state), jnp.full((), laws.lm.eos, jnp.int32), tokens, counts, values)


class _Turn(GenerativeFunction):
    turn_tokens: int = eqx.field(static=True)

    def run(
        self, key: PRNGKeyArray | None, given: Given, args: tuple, request: Request = PLAIN
    ) -> Outcome:
        """One turn of the model, and what it is told then: see `conversation`."""
        old, t, laws, rewards, told, told_counts = args
        lm, size, extra = laws.lm, self.turn_tokens, told.shape[1]
        first = t * (size + extra)
        over = jnp.zeros((), bool)
        loop = write_passage(
            laws, key, given, request, size, old.hot.value, None, first, old.last, over
        )
        piece = loop.passage

        def read(state, inputs):
            token, index = inputs
            write = index < told_counts[t]
            return lm.advance(laws.prefix, state, token, first + size + index, write), None

        inputs = told[t], jnp.arange(extra, dtype=jnp.int32)
        # After its last turn the model is told nothing.
        state = jax.lax.scan(read, loop.state, inputs)[0] if extra else loop.state
        tokens, counts = old.tokens.at[t].set(piece.tokens), old.counts.at[t].set(piece.count)
        step = Step(
            piece.tokens, piece.count, tokens.reshape(-1), jnp.sum(counts, dtype=jnp.int32), t,
            piece.ended, loop.state.hidden,
        )  # fmt: skip
        values, log_weight = [], loop.log_weight
        for reward, value in zip(rewards, old.values, strict=True):
            value, gain = reward.weigh(value, step, jnp.ones((), bool))
            values.append(value)
            log_weight += gain.astype(log_weight.dtype)
        new = Conversation(Hot(state), old.last, tokens, counts, tuple(values))
        return outcome(loop._replace(log_weight=log_weight), laws, request, new)


class Turns(StateSpace):
    """See `conversation`. `conversation(...) * StepReward(fn)` weighs its turns."""

    turn_tokens: int = eqx.field(static=True)

    def __init__(self, laws: Laws, rewards: tuple, told: Array, counts: Array, turn_tokens: int):
        sizes = (counts.shape[0], turn_tokens)

        def init(ctx, laws, rewards, told, counts):
            return _start(ctx, laws, rewards, told, counts, sizes)

        bound = (laws, rewards, told, counts)
        super().__init__(init, _Turn(turn_tokens), sizes[0], bound=bound)
        self.turn_tokens = turn_tokens

    def __mul__(self, other: Any) -> "Turns":
        """The conversation weighed by one more potential of steps."""
        if not isinstance(other, StepPotential):
            return NotImplemented
        laws, rewards, told, counts = self.bound
        rewards = (*rewards, other.over(Vocabulary.of(laws.lm)))
        return Turns(laws, rewards, told, counts, self.turn_tokens)

    __rmul__ = __mul__


def conversation(
    lm: LanguageModel,
    prompt: Prompt | Prefix,
    told: Sequence[str | Sequence[int]],
    turn_tokens: int,
    temperature: Any = 1.0,
) -> Turns:
    """Several turns of the model in one context: draft, critique, revise.

    The model writes a turn after the prompt, is told `told[0]`, writes a turn, and so on: one more
    turn than there are things told, a turn a step. Law: prod_k p(turn k | all that was said before
    it); a turn ends with the end-of-text token or after `turn_tokens` tokens, and what the model is
    told (a text for a model with a tokenizer, or token ids) is given and no part of the
    probability. Site "token" [turns, turn_tokens]. A turn's own end token is not kept: what is told
    begins with it, as `told_by(lm, message)` does for chat models. `conversation(...) *
    StepReward(fn)` weighs each turn.
    """
    if turn_tokens < 1:
        raise ValueError(f"a turn has at least one token, got turn_tokens={turn_tokens}")
    parts = [np.asarray(_part(lm, x)[0]) for x in told]
    extra = max((len(p) for p in parts), default=0)
    rows = np.zeros((len(parts) + 1, extra), np.int32)
    for row, part in zip(rows, parts, strict=False):
        row[: len(part)] = part
    counts = jnp.asarray([*map(len, parts), 0], jnp.int32)
    prefix = prompt if isinstance(prompt, Prefix) else lm.prompt(prompt)
    lm.check_room(prefix, len(rows) * (turn_tokens + extra))
    laws = Laws(lm, prefix, jnp.asarray(temperature, dtype=float))
    return Turns(laws, (), jnp.asarray(rows), counts, turn_tokens)


def told_by(lm: LanguageModel, message: str, role: str = "user") -> str:
    """What a chat model reads between its turns: the end of its own, a message, its next opening.

    Taken from the model's chat template.
    """
    if lm.tokenizer is None:
        raise ValueError("this model has no tokenizer, so no chat template: give token ids")
    turns = [
        {"role": "user", "content": "."},
        {"role": "assistant", "content": _MARK},
        {"role": role, "content": message},
    ]
    return lm.tokenizer.chat(turns).split(_MARK)[1]
