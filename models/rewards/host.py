"""Python functions of text as potentials: one callback a step serves the whole population.

A function is called once for each distinct text, over all runs, and only for texts that are
needed: complete ones, unless it was told `prefixes=True`. A text on which it raises, or gives NaN
or +inf, makes the weight of its particle NaN; the others go on, the run's status is NAN.
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ...ppl.combinators.branches import any_member
from ...ppl.hot import Hot
from ...ppl.potential import Potential
from ..language.vocabulary import Vocabulary
from .registry import Handle, lookup
from .scores import KEPT, Reader, Scores, Texts, as_log_weight
from .written import Written, end_of


class HostPotential(Potential):
    """What `Reward` and `Check` share: the text so far is carried, the host is asked for weights.

    The prefix weight is 1 without `prefixes`; with it, it is the function's of the text so far
    (of the empty text 1), so that the weights telescope to that of the complete text.
    """

    scores: Handle
    texts: Handle | None
    eos: Int[Array, ""] | None
    prefixes: bool = eqx.field(static=True)
    whole: bool = eqx.field(static=True)

    def __init__(self, scores: Scores, prefixes: bool, whole: bool):
        self.scores, self.texts, self.eos = Handle(scores), None, None
        self.prefixes, self.whole = prefixes, whole

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

    def over(self, vocabulary: Vocabulary) -> "HostPotential":
        """See `Potential.over`; scores are shared with this one."""
        if self.texts is not None:
            return self
        texts = Texts(self.scores.value, Reader(vocabulary, self.whole), self.prefixes)
        return eqx.tree_at(
            lambda p: (p.texts, p.eos),
            self,
            (Handle(texts), jnp.asarray(vocabulary.eos, jnp.int32)),
            is_leaf=lambda x: x is None or isinstance(x, Handle),
        )

    def start(self, length):
        """See `Potential.start`."""
        end_of(self.eos, self._name)
        return Hot((Written.nothing(length), jnp.zeros(())))

    def advance(self, state, symbol, context=None):
        """See `Potential.advance`."""
        return self._advanced(state, symbol, jnp.zeros((), bool))[0]

    def log_prefix(self, state, remaining=None):
        """See `Potential.log_prefix`."""
        return state.value[1]

    def log_complete(self, state, context=None):
        """See `Potential.log_complete`; `weigh` asks the host for ended texts only."""
        written, before = state.value
        need = _going(written, before)
        return jnp.where(need, self._ask(written.tokens, written.count, need), before)

    def weigh(self, state, symbol, ended, remaining=None, context=None):
        """See `Potential.weigh`."""
        new, after = self._advanced(state, symbol, ended)
        before = state.value[1]
        possible = ~(jnp.isneginf(after) | jnp.isneginf(before))
        gain = jnp.where(possible, after, 0.0) - jnp.where(possible, before, 0.0)
        return new, jnp.where(possible, gain, -jnp.inf)

    def _advanced(self, state: Hot, symbol: Array, ended: Bool[Array, ""]):
        """The state after a symbol, and the log weight then: complete if `ended`, else prefix."""
        written, before = state.value
        new = written.write(symbol, end_of(self.eos, self._name))
        need = _going(written, before) & (ended | (self.prefixes & ~new.ended))
        after = jnp.where(need, self._ask(new.tokens, new.count, need), before)
        return Hot((new, after)), after

    def _ask(self, tokens: Array, count: Array, need: Bool[Array, ""]) -> Float[Array, ""]:
        """The host's log weight of `tokens[:count]`; 0 where it is not needed."""
        dtype = jnp.zeros(()).dtype
        assert self.texts is not None

        def call(number, *args):
            out = jax.ShapeDtypeStruct((), dtype)
            answer = functools.partial(_answer, dtype)
            return jax.pure_callback(answer, out, number, *args, vmap_method="broadcast_all")

        def skip(number, *args):
            return jnp.zeros((), dtype)

        return jax.lax.cond(any_member(need), call, skip, self.texts.number, tokens, count, need)

    @property
    def _name(self) -> str:
        return f"{type(self).__name__}({self.scores.value.name})"


def _going(written: Written, log_weight: Array) -> Bool[Array, ""]:
    """Is this a text that still counts: not ended, nor impossible, nor NaN?"""
    return ~written.ended & jnp.isfinite(log_weight)


def _answer(dtype, number, tokens, count, need):
    texts: Texts = lookup(number)
    return texts.weigh(*map(np.asarray, (tokens, count, need))).astype(dtype)


class Reward(HostPotential):
    """`fn(text) -> nats` as a weight exp(fn(text)) of texts, by a Python function.

    Law: `lm * Reward(fn)` is p(x) exp(fn(x)) over complete texts x. With `prefixes=True` the
    function also weighs what is written so far, as a telescoping product: the target is the same,
    and -inf of a prefix has to mean -inf of all that begins with it. For a product over steps use
    `TokenReward`.

    Args:
        fn: a function of a text; with `batched`, of a list of texts, that returns a list. It runs
            on the host inside compiled code: it must not call JAX. -inf forbids a text.
        name: what messages call it.
        batched: does it take lists?
        prefixes: weigh prefixes too.
        whole: leave an unfinished character at the end of a text out, instead of U+FFFD.
        cache: number of texts whose values are kept.

    `failures`: the exception of each text on which it raised or gave NaN or +inf; those particles
    have weight NaN, and the run status NAN.
    """

    def __init__(
        self,
        fn: Callable[[Any], Any],
        name: str | None = None,
        *,
        batched: bool = False,
        prefixes: bool = False,
        whole: bool = False,
        cache: int = KEPT,
    ):
        scores = Scores(fn, name, read=as_log_weight, batched=batched, size=cache)
        super().__init__(scores, prefixes, whole)
