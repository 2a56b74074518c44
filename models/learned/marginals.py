"""Marginalization models: all marginals of an unnormalised discrete target by one network.

Liu, Ramadge and Adams (2024), "Generative marginalization models": the self-consistency of
marginals, in its energy-based setting. Here masses stay unnormalised: that of the
complete assignment is the target's, so that of the empty one is its normalizer.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ...ppl.code import Code
from .head import Head, head


class Marginals(eqx.Module):
    """log f(x_S) = log sum of f over what is not in S, for L variables of K values each; learned.

    `log_f(x)` [L] to nats is the target. A mass is the network's; of a complete assignment it is
    f itself. Heuristic until checked: how well the masses add up is `marginal_consistency`.
    """

    head: Head
    log_f: Code
    size: int = eqx.field(static=True)
    values: int = eqx.field(static=True)

    @staticmethod
    def init(
        key: PRNGKeyArray,
        log_f: Callable[[Array], Array],
        size: int,
        values: int,
        width: int | None = 64,
    ) -> "Marginals":
        """An untrained one, for `size` variables with values 0 .. `values` - 1."""
        made = head(key, size * (values + 1), 1, width=width)
        return Marginals(made, Code(log_f), size, values)

    def log_mass(self, x: Int[Array, "L"], known: Bool[Array, "L"]) -> Float[Array, ""]:
        """Log f(x_S), S where `known`; the rest of x is not read. Nats."""
        symbols = jnp.where(known, x, self.values)
        features = jax.nn.one_hot(symbols, self.values + 1).reshape(-1)
        value = self.head(features)[0]
        return jnp.where(known.all(), self.log_f(x).astype(value.dtype), value)

    def log_marginal(self, x: Int[Array, "L"], known: Bool[Array, "L"]) -> Float[Array, ""]:
        """Log probability of x_S: its mass over that of nothing."""
        return self.log_mass(x, known) - self.log_evidence()

    def log_evidence(self) -> Float[Array, ""]:
        """Log sum of f: the mass when nothing is known."""
        return self.log_mass(jnp.zeros(self.size, jnp.int32), jnp.zeros(self.size, bool))

    def log_next(
        self, x: Int[Array, "L"], known: Bool[Array, "L"], index: Int[Array, ""]
    ) -> Float[Array, "K"]:
        """Log masses with variable `index` known as well, for each of its values.

        Their log softmax is its law given x_S: any order of drawing will do, and prefixes give the
        optimal twist of drawing in order.
        """
        more = known.at[index].set(True)
        each = jnp.arange(self.values, dtype=x.dtype)
        return jax.vmap(lambda v: self.log_mass(x.at[index].set(v), more))(each)

    def sample(self, key: PRNGKeyArray) -> tuple[Int[Array, "L"], Float[Array, ""]]:
        """A draw in a random order, and its log density under that order; a proposal for f."""
        key_order, key_draw = jax.random.split(key)
        order = jax.random.permutation(key_order, self.size)

        def step(carry, index):
            x, known = carry
            logits = self.log_next(x, known, index)
            value = jax.random.categorical(jax.random.fold_in(key_draw, index), logits)
            new = x.at[index].set(value.astype(x.dtype)), known.at[index].set(True)
            return new, jax.nn.log_softmax(logits)[value]

        start = jnp.zeros(self.size, jnp.int32), jnp.zeros(self.size, bool)
        (x, _), log_probs = jax.lax.scan(step, start, order)
        return x, jnp.sum(log_probs)


def marginal_consistency(
    key: PRNGKeyArray, marginals: Marginals, x: Int[Array, "n L"]
) -> Float[Array, ""]:
    """Mean squared difference of log f(x_S) and the log of its sum over one more variable.

    S is random (its size uniform), the variable one that is not in it, and no gradient passes to
    the sum, which is exact where S lacks one variable. 0 for the true marginals. `x` may come from
    anywhere that reaches what matters: uniform draws, `marginals.sample`, a posterior.
    """

    def one(key, row):
        key_order, key_count = jax.random.split(key)
        order = jax.random.permutation(key_order, marginals.size)
        count = jax.random.randint(key_count, (), 0, marginals.size)
        known = jnp.zeros(marginals.size, bool).at[order].set(jnp.arange(marginals.size) < count)
        summed = jax.nn.logsumexp(marginals.log_next(row, known, order[count]))
        return (marginals.log_mass(row, known) - jax.lax.stop_gradient(summed)) ** 2

    return jnp.mean(jax.vmap(one)(jax.random.split(key, x.shape[0]), x))
