"""A language model as judge: the probability of its answer to a question about the text.

One token's probability as the value of a text: Manvi, Singh and Ermon (2024), "Adaptive
inference-time compute: LLMs can predict if they can do better, even mid-generation".
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ...ppl.combinators.branches import any_member
from ...ppl.potential import Potential
from ..language.alphabets import kept
from ..language.protocol import LanguageModel, Prefix
from ..language.vocabulary import Vocabulary

Template = str | Sequence[Mapping[str, str]] | tuple[Sequence[int], Sequence[int]]
_TEXT = "{text}"


class Judge(Potential):
    """Weight p(answer | template with the text), by a language model, of the whole text.

    Args:
        lm: the judge; its tokens are those of the model that writes.
        template: a text, or chat messages, with "{text}" once; or the token ids before and after
            the text.
        answer: an answer of one token (a text, or an id), or several that count as one.
        against: the answers that it is set against: the weight is then p(answer) / (p(answer) +
            p(against)).

    The part before the text is read once, for all particles; at the end of a text the judge reads
    the text, in the tokens in which it was written, and the rest, in one pass for each particle.
    While it is written a text has weight 1. ValueError if an answer is not one token or the
    template has no "{text}".
    """

    lm: LanguageModel
    before: Prefix
    after: Int[Array, "A"]
    answers: Int[Array, "K"]
    against: Int[Array, "J"] | None

    def __init__(
        self,
        lm: LanguageModel,
        template: Template,
        answer: str | int | Sequence[str | int] = "Yes",
        against: str | int | Sequence[str | int] | None = None,
    ):
        before, after = _parts(lm, template)
        self.lm, self.before = lm, lm.prompt(before)
        self.after = jnp.asarray(after, jnp.int32)
        self.answers = _answers(lm, answer)
        self.against = None if against is None else _answers(lm, against)

    def start(self, length):
        """The tokens of the text, and their number."""
        self.lm.check_room(self.before, length + self.after.shape[0])
        return jnp.zeros(length, jnp.int32), jnp.zeros((), jnp.int32)

    def advance(self, state, symbol, context=None):
        """One more token."""
        tokens, n = state
        here = jnp.arange(tokens.shape[0], dtype=jnp.int32) == n
        return jnp.where(here, symbol.astype(jnp.int32), tokens), n + 1

    def log_prefix(self, state, remaining=None):
        """0."""
        return jnp.zeros(())

    def log_complete(self, state, context=None):
        """Log probability of the answer, nats."""
        tokens, n = state
        size, rest = tokens.shape[0], self.after.shape[0]
        place = jnp.arange(size + rest, dtype=jnp.int32)
        padded = jnp.concatenate([tokens, jnp.zeros(rest, jnp.int32)])
        if rest:
            after = self.after[jnp.clip(place - n, 0, rest - 1)]
            padded = jnp.where((place >= n) & (place < n + rest), after, padded)
        logits = self.lm.replay(self.before, padded, n + rest, size + rest).logits
        chosen = jax.nn.logsumexp(logits[self.answers])
        among = logits
        if self.against is not None:
            among = logits[jnp.concatenate([self.answers, self.against])]
        impossible = jnp.isneginf(chosen)
        log_weight = jnp.where(impossible, 0.0, chosen) - jax.nn.logsumexp(among)
        return jnp.where(impossible, -jnp.inf, log_weight).astype(float)

    def weigh(self, state, symbol, ended, remaining=None, context=None):
        """See `Potential.weigh`; the judge is asked only when a text of some particle ends."""

        def ask(state):
            return self.log_complete(state)

        def skip(state):
            return jnp.zeros(())

        answer = jax.lax.cond(any_member(ended), ask, skip, state)
        return kept(ended, state, self.advance(state, symbol)), jnp.where(ended, answer, 0.0)

    def over(self, vocabulary):
        """Itself, if the judge has this vocabulary; else ValueError."""
        if self.lm.tokenizer is not None and Vocabulary.of(self.lm) != vocabulary:
            raise ValueError(
                "the judge and the model that writes have different tokens: use one model, or two "
                "of one tokenizer, or a reward that is given the text"
            )
        return self


def _parts(lm: LanguageModel, template: Any) -> tuple[Any, list[int]]:
    if isinstance(template, tuple):
        return [int(i) for i in template[0]], [int(i) for i in template[1]]
    if lm.tokenizer is None:
        raise ValueError(
            "this model has no tokenizer: give the template as token ids, (before, after)"
        )
    chat = not isinstance(template, str)
    text = lm.tokenizer.chat(template) if chat else template
    if text.count(_TEXT) != 1:
        raise ValueError(f"the template has {_TEXT} once, where the text goes; got {template!r}")
    before, after = text.split(_TEXT)
    rest = lm.tokenizer.encode(after) if after else []
    return (lm.tokenizer.encode(before) if chat else before), rest


def _answers(lm: LanguageModel, answer: Any) -> Int[Array, "K"]:
    each = [answer] if isinstance(answer, str | int) else list(answer)
    if not each:
        raise ValueError("give at least one answer")
    return jnp.asarray([_token(lm, a) for a in each], jnp.int32)


def _token(lm: LanguageModel, answer: str | int) -> int:
    if not isinstance(answer, str):
        if not 0 <= int(answer) < lm.vocab_size:
            raise ValueError(f"token ids are 0 to {lm.vocab_size - 1}; got {answer}")
        return int(answer)
    if lm.tokenizer is None:
        raise ValueError("this model has no tokenizer: give the answer as a token id")
    ids = lm.tokenizer.encode(answer)
    if len(ids) != 1:
        raise ValueError(
            f"the answer {answer!r} is {len(ids)} tokens: ask for one of a single token, such as "
            "'Yes' or 'A', with or without the space before it"
        )
    return ids[0]
