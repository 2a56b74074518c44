"""A Python function of texts, called once for each distinct text, whatever it does."""

import codecs
import functools
import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ...ppl.combinators.branches import any_member
from ..language.vocabulary import Vocabulary
from .registry import Handle, lookup

log = logging.getLogger(__name__)

KEPT = 2**16
"""Texts whose scores are kept."""


class Scores:
    """`fn(text)`, or with `batched` `fn(texts)`, read as log weights (nats); NaN where it fails.

    Kept for the last `size` distinct texts, over all runs. `failures` has the exception of each
    text that failed; `calls` counts texts that were handed to `fn`.
    """

    def __init__(
        self,
        fn: Callable,
        name: str | None = None,
        *,
        read: Callable[[Any], float],
        batched: bool = False,
        size: int = KEPT,
    ):
        self.fn, self.read, self.batched, self.size = fn, read, batched, size
        self.name = name or getattr(fn, "__name__", type(fn).__name__)
        self.calls = 0
        self.failures: dict[str, Exception] = {}
        self._known: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.RLock()

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """The log weight of each text."""
        with self._lock:
            new = [text for text in dict.fromkeys(texts) if text not in self._known]
            fresh = dict(zip(new, self._score(new), strict=True)) if new else {}
            values = [fresh[text] if text in fresh else self._known[text] for text in texts]
            self._known.update(fresh)
            for text in texts:
                self._known.move_to_end(text)
            while len(self._known) > self.size:
                self._known.popitem(last=False)
            return values

    def clear(self) -> None:
        """Forget all scores and failures, so that every text is scored anew."""
        with self._lock:
            self._known.clear()
            self.failures.clear()

    def _score(self, texts: list[str]) -> list[float]:
        self.calls += len(texts)
        if not self.batched:
            return [self._one(text, lambda text=text: self.fn(text)) for text in texts]
        try:
            values = list(self.fn(list(texts)))
        except Exception as error:  # of one text: the others are asked for again, each alone
            if len(texts) == 1:
                return [self._failed(texts[0], error)]
            return [self._one(text, lambda text=text: self.fn([text])[0]) for text in texts]
        if len(values) != len(texts):
            error = ValueError(
                f"returned {len(values)} values for {len(texts)} texts: return one for each"
            )
            return [self._failed(text, error) for text in texts]
        each = zip(texts, values, strict=True)
        return [self._one(text, lambda value=value: value) for text, value in each]

    def _one(self, text: str, score: Callable[[], Any]) -> float:
        try:
            value = self.read(score())
            if math.isnan(value) or value == math.inf:
                raise ValueError(f"returned {value}: a log weight is finite, or -inf to forbid")
            return value
        except Exception as error:
            return self._failed(text, error)

    def _failed(self, text: str, error: Exception) -> float:
        if len(self.failures) < self.size:
            self.failures[text] = error
        log.warning("%s failed on %r: %s: %s", self.name, text, type(error).__name__, error)
        return math.nan


def as_log_weight(value: Any) -> float:
    """A number of nats; TypeError for what is no real number."""
    if isinstance(value, (str, bytes)) or value is None:
        raise TypeError(f"returned {type(value).__name__}: return a number of nats")
    return float(value)


def as_permission(value: Any) -> float:
    """0 for True, -inf for False; TypeError for what is no boolean."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"returned {type(value).__name__}: return True or False")
    return 0.0 if value else -math.inf


class Reader:
    """The texts of token ids.

    Bytes that are no character are U+FFFD, and so is an unfinished character at the end, unless
    `whole`: then it is left out. Special tokens have no text.
    """

    def __init__(self, vocabulary: Vocabulary, whole: bool = False):
        self.eos, self.whole = vocabulary.eos, whole
        self._decoder = codecs.getincrementaldecoder("utf-8")
        silent = vocabulary.forbidden | {vocabulary.eos}
        self._bytes = [b"" if i in silent else raw for i, raw in enumerate(vocabulary.token_bytes)]

    def raw(self, ids: Sequence[int]) -> bytes:
        """The bytes of token ids."""
        return b"".join([self._bytes[i] for i in ids])

    def text(self, raw: bytes) -> str:
        """The text of bytes."""
        return self._decoder("replace").decode(raw, final=not self.whole)


class Texts:
    """The scores of what particles have written: in callbacks, for a whole population at once."""

    def __init__(self, scores: Scores, reader: Reader, prefixes: bool):
        self.scores, self.reader, self.prefixes = scores, reader, prefixes

    def weigh(self, tokens: np.ndarray, count: np.ndarray, need: np.ndarray) -> np.ndarray:
        """Log weights [...] of the texts `tokens[..., :count]` that are needed, else 0."""
        out = np.zeros(count.shape)
        flat = out.reshape(-1)
        rows = np.flatnonzero(need.reshape(-1))
        ids, counts = tokens.reshape(-1, tokens.shape[-1]), count.reshape(-1)
        raw = (self.reader.raw(ids[i, : counts[i]].tolist()) for i in rows)
        flat[rows] = self.scores([self.reader.text(x) for x in raw])
        return out


class Scored(eqx.Module):
    """What potentials that hold `Scores` tell of them."""

    scores: eqx.AbstractVar[Handle]

    @property
    def failures(self) -> dict[str, Exception]:
        """The exception of each text on which the function failed."""
        return self.scores.value.failures

    @property
    def calls(self) -> int:
        """Number of texts that the function was asked to weigh."""
        return self.scores.value.calls

    def clear(self) -> None:
        """Forget the scores and failures of all texts."""
        self.scores.value.clear()


def ask(
    texts: Handle, tokens: Int[Array, "L"], count: Int[Array, ""], need: Bool[Array, ""]
) -> Float[Array, ""]:
    """The log weight by `Texts` of `tokens[:count]`, nats; 0 where it is not needed.

    One callback serves a population under `vmap`, and none is made if no member needs it.
    """
    dtype = jnp.result_type(float)

    def call(number, *args):
        out = jax.ShapeDtypeStruct((), dtype)
        answer = functools.partial(_answer, dtype)
        return jax.pure_callback(answer, out, number, *args, vmap_method="broadcast_all")

    def skip(number, *args):
        return jnp.zeros((), dtype)

    weight = jax.lax.cond(any_member(need), call, skip, texts.number, tokens, count, need)
    return jnp.where(need, weight, 0.0)


def _answer(dtype, number, tokens, count, need):
    texts: Texts = lookup(number)
    return texts.weigh(*map(np.asarray, (tokens, count, need))).astype(dtype)
