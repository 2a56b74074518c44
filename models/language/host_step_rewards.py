"""Python functions of a step, or of the text so far, as weights of steps.

One callback a step serves the whole population, and each distinct text is scored once; see
`models.Reward` for what happens where the function fails.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from ...ppl.errors import ProgramError
from ...ppl.log_weights import gain, power
from ..rewards.registry import Handle
from ..rewards.scores import Reader, Scored, Scores, Texts, as_log_weight, ask
from .step_rewards import Step, StepPotential
from .vocabulary import Vocabulary


class _OnHost(StepPotential, Scored):
    scores: Handle
    texts: Handle | None
    exponent: Float[Array, ""]
    whole: bool = eqx.field(static=True)

    def __init__(self, scores: Scores, whole: bool, exponent: ArrayLike = 1.0):
        self.scores, self.texts, self.whole = Handle(scores), None, whole
        self.exponent = jnp.asarray(exponent, dtype=float)

    def over(self, vocabulary: Vocabulary):
        """See `StepPotential.over`; scores are shared with this one."""
        if self.texts is not None:
            return self
        texts = Handle(Texts(self.scores.value, Reader(vocabulary), True))
        return eqx.tree_at(lambda p: p.texts, self, texts, is_leaf=lambda x: x is None)

    def __pow__(self, exponent: ArrayLike):
        """Its weights to a power; zero stays zero."""
        power = self.exponent * jnp.asarray(exponent, dtype=float)
        return eqx.tree_at(lambda p: p.exponent, self, power)

    def _value(self, step: Step, need: Bool[Array, ""]) -> Float[Array, ""]:
        """The host's nats, to the power; 0 where they are not needed."""
        if self.texts is None:
            raise ProgramError("this reward is on no vocabulary yet: multiply a model by it")
        tokens, count = (step.text, step.length) if self.whole else (step.tokens, step.count)
        return power(ask(self.texts, tokens, count, need), self.exponent)


def _scores(fn: Callable, name: str | None, batched: bool) -> Scores:
    return Scores(fn, name, read=as_log_weight, batched=batched)


class HostStepReward(_OnHost):
    """`HostStepReward(fn)`: every step multiplies the weight by exp(fn(text of the step)).

    Law: as of `StepReward`. With `whole`, fn gets the text so far, of which the step is the end.
    `fn` runs on the host and must not call JAX; with `batched` it takes and returns lists.
    """

    def __init__(
        self,
        fn: Callable[[Any], Any],
        name: str | None = None,
        *,
        batched: bool = False,
        whole: bool = False,
    ):
        super().__init__(_scores(fn, name, batched), whole)

    def start(self):
        """Nothing."""
        return ()

    def weigh(self, state, step, active):
        """See `StepPotential.weigh`."""
        return state, self._value(step, active & (step.count > 0))


class HostStepValue(_OnHost):
    """`HostStepValue(fn)`: fn(text so far) is the log weight of the text as it stands.

    Law: as of `StepValue`: p(x) exp(fn(x)), and values before the last guide the way only; -inf of
    a beginning has to mean -inf of all that begins with it.
    """

    def __init__(self, fn: Callable[[Any], Any], name: str | None = None, *, batched: bool = False):
        super().__init__(_scores(fn, name, batched), True)

    def start(self):
        """The value of the empty text."""
        return jnp.zeros(())

    def weigh(self, state, step, active):
        """See `StepPotential.weigh`."""
        value = self._value(step, active & ~jnp.isneginf(state))
        return value, gain(value, state)
