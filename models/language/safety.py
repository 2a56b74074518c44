"""Safety by construction: a budget that no text exceeds, carried as a part of the state.

The state is augmented by what is left of a budget, as in Sootla et al. (2022), "Sauté RL: almost
surely safe reinforcement learning using state augmentation", section 3, and for decoding in Ji et
al. (2025), "Almost surely safe alignment of large language models at inference-time". There a
penalty stands for the constraint; here the constraint is in the weights and in the draws.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Int

from ...ppl.code import Code
from ...ppl.potential import Potential


class Safety(Potential):
    """A text costs the sum of its symbols' costs; the state is what it has cost so far.

    Law: `lm * Safety(cost, budget)` is p(x) exp(-rate max(0, c(x) - soft)) over the texts x that
    cost c(x) <= budget. The end of the text costs too.

    Guarantee, for a table of costs over tokens: no text that is drawn exceeds `budget`, with
    probability one, at every length, and, if the model gives the end a positive probability after
    every text and the end's own cost is within the budget, none is ever at a dead end, so that no
    particle has weight zero. For it is looked ahead: the least that it costs to end from any text
    is the cost of the end, and a token is drawn only if that much is left after it.

    Args:
        cost: non-negative costs, [V] over tokens (from `token_table`, or a classifier's), or by
            symbol in another alphabet; or a function of the symbol, such as a `Unit` of `Steps`.
            Without a table, or in another alphabet, draws are not guided: texts that exceed the
            budget are dropped when they do (their weight is zero), and particles may die.
        budget: the hard one. Sums are in floating point: whole numbers of a unit of cost are exact.
        soft: from here on each unit of cost takes `rate` nats.
        rate: nats a unit of cost, non-negative.
    """

    cost: Any
    budget: Float[Array, ""]
    soft: Float[Array, ""]
    rate: Float[Array, ""]
    eos: Int[Array, ""] | None

    def __init__(
        self,
        cost: Float[ArrayLike, "V"] | Callable[..., Any],
        budget: ArrayLike = jnp.inf,
        soft: ArrayLike = jnp.inf,
        rate: ArrayLike = 1.0,
    ):
        self.cost = Code(cost) if callable(cost) else jnp.asarray(cost, dtype=float)
        self.budget, self.soft, self.rate = (jnp.asarray(x, dtype=float) for x in
                                             (budget, soft, rate))  # fmt: skip
        self.eos = None
        if not isinstance(self.cost, Code | Tracer):
            table = np.asarray(self.cost)
            if table.ndim != 1 or not (table >= 0).all():
                raise ValueError("costs are a table of one number >= 0 a symbol")

    def over(self, vocabulary):
        """Itself, with the cost of the end. ValueError if the table is not of this vocabulary."""
        eos = vocabulary.eos
        if not isinstance(self.cost, Code):
            if not eos < self.cost.shape[0]:
                raise ValueError(f"costs of {self.cost.shape[0]} tokens, but the end is {eos}")
            concrete = not isinstance(self.cost, Tracer) and not isinstance(self.budget, Tracer)
            if concrete and float(self.cost[eos]) > float(self.budget):
                raise ValueError(
                    f"the end alone costs {float(self.cost[eos])}, more than the budget of "
                    f"{float(self.budget)}: no text is within it"
                )
        end = jnp.asarray(eos, jnp.int32)
        return eqx.tree_at(lambda s: s.eos, self, end, is_leaf=lambda x: x is None)

    def start(self, length):
        """Nothing spent."""
        return jnp.zeros(())

    def advance(self, state, symbol, context=None):
        """The cost with that of one more symbol."""
        return state + self._cost(symbol)

    def left(self, state: Float[Array, ""]) -> Float[Array, ""]:
        """What is left of the hard budget."""
        return self.budget - state

    def log_prefix(self, state, remaining=None):
        """-inf when the text can no longer end within the budget, else the penalty so far."""
        possible = state + self._ending() <= self.budget
        if remaining is not None:
            possible = possible & (remaining > 0)
        return jnp.where(possible, self._penalty(state), -jnp.inf)

    def log_complete(self, state, context=None):
        """-inf beyond the budget, else the penalty."""
        state = state + self._ending()
        return jnp.where(state <= self.budget, self._penalty(state), -jnp.inf)

    def log_next(self, state, remaining=None):
        """Exact for a table over tokens."""
        if self.eos is None or isinstance(self.cost, Code):
            return None
        after = state + self.cost
        possible = after + self._ending() <= self.budget
        if remaining is not None:
            possible = possible & (remaining > 1)
        possible = possible.at[self.eos].set(after[self.eos] <= self.budget)
        gain = self._penalty(after) - self._penalty(state)
        alive = ~jnp.isneginf(self.log_prefix(state, remaining))
        return jnp.where(possible & alive, gain, -jnp.inf)

    def _cost(self, symbol: Any) -> Array:
        cost = self.cost(symbol) if isinstance(self.cost, Code) else self.cost[symbol]
        return jnp.asarray(cost, dtype=self.budget.dtype)

    def _ending(self) -> Array:
        """The cost of the end: nothing where it is no symbol."""
        if self.eos is None or isinstance(self.cost, Code):
            return jnp.zeros_like(self.budget)
        return self.cost[self.eos]

    def _penalty(self, spent: Array) -> Array:
        over = jnp.maximum(spent - self.soft, 0.0)
        return jnp.where(over > 0, -self.rate * over, jnp.zeros_like(over))
