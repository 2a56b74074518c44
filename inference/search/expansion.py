"""Which children a beam has."""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from ...ppl.errors import ProgramError
from ...ppl.feynman_kac import FeynmanKac, Moved
from ...ppl.generative import Request
from ...ppl.partial import Given, as_given, overlay
from ...ppl.probe import FINITE_SUPPORT


class Expansion(eqx.Module):
    """The children of a state: how many, and the move to each."""

    # Are children weighed first, and moved to only when chosen?
    weighed_first: ClassVar[bool] = False

    @abc.abstractmethod
    def size(self, fk: FeynmanKac, given: Given, state: PyTree) -> int:
        """Number of children; static."""

    @abc.abstractmethod
    def child(
        self,
        fk: FeynmanKac,
        key: PRNGKeyArray,
        given: Given,
        state: PyTree,
        t: Int[Array, ""],
        number: Int[Array, ""],
    ) -> Moved:
        """The move to one child at step t."""


class Sampled(Expansion):
    """`children` independent draws of the model's step."""

    children: int = eqx.field(static=True)

    def __check_init__(self):
        if self.children < 1:
            raise ValueError(f"a beam needs at least one child, got {self.children}")

    def size(self, fk, given, state):
        """See `Expansion.size`."""
        return self.children

    def child(self, fk, key, given, state, t, number):
        """See `Expansion.child`."""
        return fk.step(jax.random.fold_in(key, number), given, state, t)


class Enumerated(Expansion):
    """Every value of one finite site of the step, such as "token"; its other sites are drawn.

    All are weighed, and the model is advanced only for those that are kept. A factor that reads the
    state after the value has it computed for every value.
    """

    site: str = eqx.field(static=True)
    weighed_first: ClassVar[bool] = True

    def size(self, fk, given, state):
        """See `Expansion.size`."""
        return jax.eval_shape(lambda s: self._values(fk, given, s), state).shape[0]

    def child(self, fk, key, given, state, t, number):
        """See `Expansion.child`."""
        value = self._values(fk, given, state)[number]
        moved = fk.step(
            jax.random.fold_in(key, number), overlay(as_given({self.site: value}), given), state, t
        )
        return moved

    def _values(self, fk: FeynmanKac, given: Given, state: PyTree) -> Array:
        model, args = fk.model, fk.target.args
        if self.site in given:
            raise ProgramError(
                f"site {self.site!r} is constrained, so there is nothing to enumerate: leave the "
                "constraint out or use Sampled(1)"
            )
        request = Request(probe=FINITE_SUPPORT)
        out = model.step.run(
            jax.random.key(0), given, (state, jnp.int32(0), *model.bound, *args), request
        )
        values = (out.reports or {}).get(self.site)
        if values is None or isinstance(values, dict):
            raise ProgramError(
                f"the step has no site {self.site!r} with a finite set of values: use "
                "Sampled(children), or name one of its discrete sites"
            )
        return values
