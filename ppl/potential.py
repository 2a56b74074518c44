"""Potentials: weights of sequences, multiplied, divided and raised to powers, one symbol at a time.

The algebra and the contract of prefix and complete weights are those of Loula et al. (2025),
"Syntactic and semantic control of large language models via sequential Monte Carlo", section 2.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from .combinators.branches import any_member
from .errors import ProgramError
from .hot import map_cold
from .log_weights import gain, power, product, ratio

Remaining = Int[Array, ""] | None


class Potential(eqx.Module):
    """Weighs sequences of symbols; `model * potential` is the model with these weights.

    A sequence x ends with an end symbol, which is no part of x. `log_complete` says what x weighs
    when it ends (nats), and that alone decides the target. `log_prefix` says what x weighs while
    it is written: it decides which particles are kept on the way, as a telescoping product, and
    must be -inf only where every continuation weighs zero. `remaining` is the number of symbols
    that may still come, the end symbol included, or None for no limit.

    The state that is carried is a pytree; large parts of it go into `ppl.Hot`. Symbols are token
    ids once `over` has put the potential on a vocabulary. `context`, for a potential with
    `reads_model`, is the state of the model that the symbol was drawn in.
    """

    @property
    def reads_model(self) -> bool:
        """Does it need `context`?"""
        return False

    @property
    def waits(self) -> bool:
        """Does `advance` with the symbol -1, which is none, leave the hot state as it is?

        Where particles of several speeds share a loop, the hot state of one that does not is
        copied at every symbol.
        """
        return False

    @abc.abstractmethod
    def start(self, length: int) -> PyTree:
        """The state of the empty sequence, to which at most `length` symbols will come."""

    @abc.abstractmethod
    def advance(self, state: PyTree, symbol: Int[Array, ""], context: Any = None) -> PyTree:
        """The state after one more symbol that is not the end."""

    @abc.abstractmethod
    def log_prefix(self, state: PyTree, remaining: Remaining = None) -> Float[Array, ""]:
        """Log weight of what is written, as the beginning of something; nats."""

    @abc.abstractmethod
    def log_complete(self, state: PyTree, context: Any = None) -> Float[Array, ""]:
        """Log weight of what is written, as a whole; nats."""

    def log_next(self, state: PyTree, remaining: Remaining = None) -> Float[Array, "V"] | None:
        """What each next symbol does to the log weight, if that is known for all of them at once.

        `log_prefix` after it less `log_prefix` now, and for the end symbol `log_complete` less
        `log_prefix`. Draws are guided by it; one that is wrong is corrected by the weights, where
        it is not -inf.
        """
        return None

    def over(self, vocabulary: Any) -> "Potential":
        """The same potential on the tokens of a vocabulary; itself if it is on tokens already."""
        return self

    def weigh(
        self,
        state: PyTree,
        symbol: Int[Array, ""],
        ended: Bool[Array, ""],
        remaining: Remaining = None,
        context: Any = None,
    ) -> tuple[PyTree, Float[Array, ""]]:
        """The state after a symbol (the end symbol if `ended`) and the log weight that it adds.

        Complete weights are computed only in a step in which some particle ends.
        """
        new = self.advance(state, symbol, context)
        before = self.log_prefix(state, remaining)
        after = self.log_prefix(new, None if remaining is None else remaining - 1)

        def whole():
            return self.log_complete(state, context).astype(after.dtype)

        complete = jax.lax.cond(any_member(ended), whole, lambda: jnp.zeros_like(after))
        added = gain(jnp.where(ended, complete, after), before)
        return map_cold(lambda x, old: jnp.where(ended, old, x), new, state), added

    def __mul__(self, other: Any) -> "Potential":
        """The product of two potentials."""
        if not isinstance(other, Potential):
            return NotImplemented
        return Product((*_factors(self), *_factors(other)))

    def __truediv__(self, other: Any) -> "Potential":
        """This potential divided by another."""
        return Quotient(self, other) if isinstance(other, Potential) else NotImplemented

    def __pow__(self, exponent: ArrayLike) -> "Potential":
        """Prefix and complete weights to a power; a weight of zero stays zero."""
        exponent = jnp.asarray(exponent, dtype=float)
        if exponent.shape:
            raise ProgramError(f"the power of a potential is one number, got {exponent.shape}")
        return Power(self, exponent)


def _factors(potential: Potential) -> tuple[Potential, ...]:
    return potential.factors if isinstance(potential, Product) else (potential,)


class Product(Potential):
    """The product of potentials: `p * q`. Its `log_next` is of the factors that have one."""

    factors: tuple[Potential, ...]

    @property
    def reads_model(self) -> bool:
        """Does one of the factors?"""
        return any(p.reads_model for p in self.factors)

    @property
    def waits(self) -> bool:
        """Do all factors?"""
        return all(p.waits for p in self.factors)

    def start(self, length):
        """See `Potential.start`."""
        return tuple(p.start(length) for p in self.factors)

    def advance(self, state, symbol, context=None):
        """See `Potential.advance`."""
        return tuple(
            p.advance(s, symbol, context) for p, s in zip(self.factors, state, strict=True)
        )

    def log_prefix(self, state, remaining=None):
        """See `Potential.log_prefix`."""
        return product(p.log_prefix(s, remaining) for p, s in zip(self.factors, state, strict=True))

    def log_complete(self, state, context=None):
        """See `Potential.log_complete`."""
        return product(p.log_complete(s, context) for p, s in zip(self.factors, state, strict=True))

    def weigh(self, state, symbol, ended, remaining=None, context=None):
        """See `Potential.weigh`: each factor's own."""
        pairs = [
            p.weigh(s, symbol, ended, remaining, context)
            for p, s in zip(self.factors, state, strict=True)
        ]
        return tuple(new for new, _ in pairs), product(added for _, added in pairs)

    def log_next(self, state, remaining=None):
        """See `Potential.log_next`."""
        each = [p.log_next(s, remaining) for p, s in zip(self.factors, state, strict=True)]
        known = [x for x in each if x is not None]
        return product(known) if known else None

    def over(self, vocabulary):
        """See `Potential.over`."""
        return Product(tuple(p.over(vocabulary) for p in self.factors))


class Power(Potential):
    """A potential to a power: `p ** exponent`; of the weight of each prefix, not of a whole law."""

    base: Potential
    exponent: Float[Array, ""]

    @property
    def reads_model(self) -> bool:
        """Does the base?"""
        return self.base.reads_model

    @property
    def waits(self) -> bool:
        """Does the base?"""
        return self.base.waits

    def start(self, length):
        """See `Potential.start`."""
        return self.base.start(length)

    def advance(self, state, symbol, context=None):
        """See `Potential.advance`."""
        return self.base.advance(state, symbol, context)

    def log_prefix(self, state, remaining=None):
        """See `Potential.log_prefix`."""
        return power(self.base.log_prefix(state, remaining), self.exponent)

    def log_complete(self, state, context=None):
        """See `Potential.log_complete`."""
        return power(self.base.log_complete(state, context), self.exponent)

    def weigh(self, state, symbol, ended, remaining=None, context=None):
        """See `Potential.weigh`."""
        state, added = self.base.weigh(state, symbol, ended, remaining, context)
        return state, power(added, self.exponent)

    def log_next(self, state, remaining=None):
        """See `Potential.log_next`."""
        known = self.base.log_next(state, remaining)
        return None if known is None else power(known, self.exponent)

    def over(self, vocabulary):
        """See `Potential.over`."""
        return Power(self.base.over(vocabulary), self.exponent)


class Quotient(Potential):
    """One potential divided by another: `p / q`; zero where p is, NaN where only q is zero."""

    top: Potential
    bottom: Potential

    @property
    def reads_model(self) -> bool:
        """Does one of the two?"""
        return self.top.reads_model or self.bottom.reads_model

    @property
    def waits(self) -> bool:
        """Do both?"""
        return self.top.waits and self.bottom.waits

    def start(self, length):
        """See `Potential.start`."""
        return self.top.start(length), self.bottom.start(length)

    def advance(self, state, symbol, context=None):
        """See `Potential.advance`."""
        top, bottom = state
        return (
            self.top.advance(top, symbol, context),
            self.bottom.advance(bottom, symbol, context),
        )

    def log_prefix(self, state, remaining=None):
        """See `Potential.log_prefix`."""
        return ratio(
            self.top.log_prefix(state[0], remaining), self.bottom.log_prefix(state[1], remaining)
        )

    def log_complete(self, state, context=None):
        """See `Potential.log_complete`."""
        return ratio(
            self.top.log_complete(state[0], context), self.bottom.log_complete(state[1], context)
        )

    def weigh(self, state, symbol, ended, remaining=None, context=None):
        """See `Potential.weigh`."""
        top, over = self.top.weigh(state[0], symbol, ended, remaining, context)
        bottom, under = self.bottom.weigh(state[1], symbol, ended, remaining, context)
        return (top, bottom), ratio(over, under)

    def log_next(self, state, remaining=None):
        """See `Potential.log_next`."""
        top = self.top.log_next(state[0], remaining)
        bottom = self.bottom.log_next(state[1], remaining)
        if top is None or bottom is None:
            return top
        return ratio(top, bottom)

    def over(self, vocabulary):
        """See `Potential.over`."""
        return Quotient(self.top.over(vocabulary), self.bottom.over(vocabulary))
