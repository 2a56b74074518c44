"""Weights of whole steps: process rewards, in both meanings that are in use.

A product of step weights and a telescoping one have different targets, so they are two classes.
These read a whole `Step` of a `stepwise` model; `Steps(StepProduct(...))` and
`Steps(Telescoping(...))` mean the same for models whose transition is a token (`generation`).
"""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from ...ppl.code import Code
from ...ppl.errors import ProgramError
from ...ppl.log_weights import gain, power


class Step(eqx.Module):
    """What a step's reward may read.

    `tokens` [step_tokens] of the step, zeros after the first `count`; `text` and `length` the same
    of all that is written; neither holds the end-of-text token, `ended` says that it was written.
    `number` counts steps from 0; `hidden` is the model's last vector, if it has one.
    """

    tokens: Int[Array, "L"]
    count: Int[Array, ""]
    text: Int[Array, "M"]
    length: Int[Array, ""]
    number: Int[Array, ""]
    ended: Bool[Array, ""]
    hidden: Float[Array, "D"] | None


class StepPotential(eqx.Module):
    """Weighs a text step by step; `stepwise(...) * potential`."""

    @abc.abstractmethod
    def start(self) -> PyTree:
        """The state of the empty text."""

    @abc.abstractmethod
    def weigh(
        self, state: PyTree, step: Step, active: Bool[Array, ""]
    ) -> tuple[PyTree, Float[Array, ""]]:
        """The state after a step, and the log weight that it adds (nats); not used if inactive."""

    def over(self, vocabulary: Any) -> "StepPotential":
        """The same potential on the tokens of a vocabulary."""
        return self


class _ByFunction(StepPotential):
    fn: Code
    exponent: Float[Array, ""]
    bound: tuple

    def __init__(self, fn: Any, exponent: ArrayLike = 1.0, bound: tuple = ()):
        self.fn, self.bound = Code(fn), bound
        self.exponent = jnp.asarray(exponent, dtype=float)

    def bind(self, *args: PyTree):
        """The potential with the arguments of `fn` after the step fixed; see `ppl.bind`."""
        return type(self)(self.fn, self.exponent, self.bound + args)

    def __pow__(self, exponent: ArrayLike):
        """Its weights to a power; zero stays zero."""
        return type(self)(self.fn, self.exponent * jnp.asarray(exponent, dtype=float), self.bound)

    def _value(self, step: Step) -> Float[Array, ""]:
        value = jnp.asarray(self.fn(step, *self.bound))
        if value.shape or not jnp.issubdtype(value.dtype, jnp.floating):
            raise ProgramError(
                f"the reward of a step is one float (nats), got {value.dtype}{list(value.shape)}"
            )
        return power(value, self.exponent).astype(float)


class StepReward(_ByFunction):
    """`StepReward(fn)`: every step multiplies the weight by exp(fn(step)).

    Law: p(x) exp(sum over the steps of x of fn(step)). A step without text (only the end of text)
    is none and is not weighed. `fn(step, *bound)` gives nats, see `Step`; it runs on the device.
    """

    def start(self):
        """Nothing."""
        return ()

    def weigh(self, state, step, active):
        """See `StepPotential.weigh`."""
        return state, jnp.where(step.count > 0, self._value(step), 0.0)


class StepValue(_ByFunction):
    """`StepValue(fn)`: fn(step) is the log weight of the text as it stands after the step.

    Law: p(x) exp(fn(last step of x)): a step multiplies the weight by exp(fn(step) - fn(step
    before)), so that earlier values only decide which particles are kept; the empty text has value
    0. A value of -inf must mean that every continuation has it. Otherwise as `StepReward`.
    """

    def start(self):
        """The value of the empty text."""
        return jnp.zeros(())

    def weigh(self, state, step, active):
        """See `StepPotential.weigh`."""
        value = self._value(step)
        return value, gain(value, state)
