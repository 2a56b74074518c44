"""Python functions of text as potentials: one callback a step serves the whole population.

A function is called once for each distinct text, over all runs, and only for texts that are
needed: complete ones, unless it was told `prefixes=True`. A text on which it raises, or gives NaN
or +inf, makes the weight of its particle NaN; the others go on, the run's status is NAN.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
from jaxtyping import Array, Int

from ..language.vocabulary import Vocabulary
from .registry import Handle
from .scores import KEPT, Reader, Scored, Scores, Texts, as_log_weight, ask
from .written import OfWritten


class HostPotential(OfWritten, Scored):
    """What `Reward` and `Check` share: the host is asked what texts weigh."""

    scores: Handle
    texts: Handle | None
    eos: Int[Array, ""] | None
    prefixes: bool = eqx.field(static=True)
    whole: bool = eqx.field(static=True)

    def __init__(self, scores: Scores, prefixes: bool, whole: bool):
        self.scores, self.texts, self.eos = Handle(scores), None, None
        self.prefixes, self.whole = prefixes, whole

    def over(self, vocabulary: Vocabulary) -> "HostPotential":
        """See `Potential.over`; scores are shared with this one."""
        if self.texts is not None:
            return self
        texts = Handle(Texts(self.scores.value, Reader(vocabulary, self.whole), self.prefixes))
        placed = super().over(vocabulary)
        return eqx.tree_at(lambda p: p.texts, placed, texts, is_leaf=lambda x: x is None)

    def value(self, written, need):
        """See `OfWritten.value`."""
        assert self.texts is not None
        return ask(self.texts, written.tokens, written.count, need)

    @property
    def name(self):
        """With that of the function."""
        return f"{type(self).__name__}({self.scores.value.name})"


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
