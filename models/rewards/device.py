"""Rewards that are computed where the model is: functions and tables of token ids."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from ...ppl.code import Code
from ...ppl.combinators.branches import any_member
from ...ppl.potential import Potential
from ..language.vocabulary import Vocabulary
from .written import OfWritten, end_of


class TokenReward(Potential):
    """A reward of each token, nats, from a table [V]: a product of step potentials.

    Law: `lm * TokenReward(table)` is p(x) exp(sum of table over the tokens of x, the end token
    included). -inf forbids a token. Draws are guided by the table.
    """

    table: Float[Array, "V"]
    eos: Int[Array, ""] | None

    def __init__(self, table: Float[ArrayLike, "..."]):
        self.table, self.eos = jnp.asarray(table, dtype=float), None
        if self.table.ndim != 1:
            raise ValueError(
                f"TokenReward takes one number of nats a token, [V]; got {self.table.shape}. "
                "models.token_table(lm, rule) makes such a table from a rule about text"
            )

    def over(self, vocabulary: Vocabulary) -> "TokenReward":
        """See `Potential.over`."""
        if self.eos is not None:
            return self
        eos = jnp.asarray(vocabulary.eos, jnp.int32)
        return eqx.tree_at(lambda p: p.eos, self, eos, is_leaf=lambda x: x is None)

    def start(self, length):
        """See `Potential.start`."""
        end_of(self.eos, "TokenReward")
        return jnp.zeros((), self.table.dtype)

    def advance(self, state, symbol, context=None):
        """See `Potential.advance`."""
        return state + self.table[symbol]

    def log_prefix(self, state, remaining=None):
        """See `Potential.log_prefix`."""
        return state

    def log_complete(self, state, context=None):
        """See `Potential.log_complete`."""
        return state + self.table[end_of(self.eos, "TokenReward")]

    def log_next(self, state, remaining=None):
        """See `Potential.log_next`."""
        return self.table


class DeviceReward(OfWritten):
    """`fn(tokens, count, *args) -> nats` as a weight of token sequences, by a JAX function.

    Law: `lm * DeviceReward(fn)` is p(x) exp(fn(x)) over complete texts; x is `tokens[:count]`, of
    `tokens` [max_tokens], without the end token. With `prefixes=True` prefixes are weighed too, as
    a telescoping product (see `models.Reward`). `args` are arrays that are stored once.
    """

    fn: Any
    args: tuple
    prefixes: bool = eqx.field(static=True)
    eos: Int[Array, ""] | None

    def __init__(self, fn: Callable[..., Array], *args: Any, prefixes: bool = False):
        self.fn = fn if isinstance(fn, eqx.Module) else Code(fn)
        self.args, self.prefixes, self.eos = args, prefixes, None

    def value(self, written, need):
        """See `OfWritten.value`."""

        def compute(tokens, count):
            value = jnp.asarray(self.fn(tokens, count, *self.args))
            if value.shape:
                raise ValueError(f"a DeviceReward returns one number, got shape {value.shape}")
            return value.astype(jnp.result_type(float))

        def skip(tokens, count):
            return jnp.zeros(())

        return jax.lax.cond(any_member(need), compute, skip, written.tokens, written.count)
