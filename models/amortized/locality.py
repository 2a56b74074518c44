"""Why reasoning helps: estimators that have only seen neighbouring variables of a chain together.

Prystawski, Li and Goodman (2023), "Why think step by step? Reasoning emerges from the locality of
experience", section 2 and theorem 3.1: of variables never seen together a density estimator that is
right on its data predicts the marginal law; through variables in between, each seen with the next,
it predicts the exact conditional. The gap between the two is the reasoning gap.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..network import Network, network
from .layers import linear


class LocalChain(eqx.Module):
    """A Markov chain of `length` variables with `values` values, seen in windows.

    - `initial` [values]: law of the first; `tables` [length - 1, values, values]: row-stochastic.
    - `window`: so many neighbours are seen together.
    """

    initial: Float[Array, "v"]
    tables: Float[Array, "n v v"]
    window: int = eqx.field(static=True, default=2)

    @property
    def length(self) -> int:
        """How many variables."""
        return self.tables.shape[0] + 1

    @property
    def values(self) -> int:
        """How many values each has."""
        return self.tables.shape[1]

    def marginals(self) -> Float[Array, "length v"]:
        """Exact law of each variable."""

        def step(law, table):
            return law @ table, law @ table

        return jnp.concatenate(
            [self.initial[None], jax.lax.scan(step, self.initial, self.tables)[1]]
        )

    def conditional(self, source: int, query: int) -> Float[Array, "v v"]:
        """Exact law of a later variable given an earlier one: row, the value of the earlier."""
        if not 0 <= source < query < self.length:
            raise ValueError(f"needs 0 <= source < query < {self.length}, got {source}, {query}")
        law = jnp.eye(self.values)
        for table in self.tables[source:query]:
            law = law @ table
        return law

    def direct(self, source: int, query: int) -> Float[Array, "v v"]:
        """What an estimator without error on local data answers at once."""
        if query - source < self.window:
            return self.conditional(source, query)
        return jnp.broadcast_to(self.marginals()[query][None], (self.values, self.values))

    def gap(self, source: int, query: int) -> Float[Array, ""]:
        """The reasoning gap: mean squared error of `direct`; stepwise the error is 0."""
        weight = self.marginals()[source]
        error = jnp.sum((self.direct(source, query) - self.conditional(source, query)) ** 2, axis=1)
        return jnp.sum(weight * error) / self.values

    def sample(self, key: PRNGKeyArray) -> Int[Array, "length"]:
        """All variables."""
        key_first, key_rest = jax.random.split(key)

        def step(value, inputs):
            k, table = inputs
            new = jax.random.categorical(k, jnp.log(table[value]))
            return new, new

        first = jax.random.categorical(key_first, jnp.log(self.initial))
        keys = jax.random.split(key_rest, self.length - 1)
        _, rest = jax.lax.scan(step, first, (keys, self.tables))
        return jnp.concatenate([first[None], rest])


class Conditionals(eqx.Module):
    """A network that predicts any variable from any others: [values shown, query] -> logits."""

    net: Network
    values: int = eqx.field(static=True)

    def __call__(self, shown: Float[Array, "length v"], query: Int[Array, ""]) -> Float[Array, "v"]:
        """Log probabilities; `shown` has one-hot rows, zero rows for what is not known."""
        asked = jax.nn.one_hot(query, shown.shape[0], dtype=shown.dtype)
        return jax.nn.log_softmax(self.net(jnp.concatenate([shown.ravel(), asked])))


def conditionals(key: PRNGKeyArray, chain: LocalChain, width: int = 64) -> Conditionals:
    """An untrained perceptron of one hidden layer for a chain's variables."""
    rngs = nnx.Rngs(key)
    inputs = chain.length * (chain.values + 1)
    layers = linear(inputs, width, rngs=rngs), linear(width, chain.values, rngs=rngs)
    return Conditionals(network(nnx.Sequential(layers[0], jax.nn.gelu, layers[1])), chain.values)


class LocalLoss(eqx.Module):
    """Negative log score of a variable in a window given a random subset of the window's others."""

    chain: LocalChain
    batch: int = eqx.field(static=True, default=128)

    def __call__(self, net: Conditionals, key: PRNGKeyArray) -> Float[Array, ""]:
        """On fresh draws; nothing outside of a window is ever shown or asked."""

        def one(key):
            key_chain, key_start, key_query, key_shown = jax.random.split(key, 4)
            values = self.chain.sample(key_chain)
            n, w = self.chain.length, self.chain.window
            start = jax.random.randint(key_start, (), 0, n - w + 1)
            query = start + jax.random.randint(key_query, (), 0, w)
            place = jnp.arange(n)
            inside = (place >= start) & (place < start + w) & (place != query)
            known = inside & jax.random.bernoulli(key_shown, 0.5, (n,))
            shown = jax.nn.one_hot(values, self.chain.values) * known[:, None].astype(float)
            return -net(shown, query)[values[query]]

        return jnp.mean(jax.vmap(one)(jax.random.split(key, self.batch)))


def estimate(net: Conditionals, chain: LocalChain, source: int, query: int) -> Float[Array, "v v"]:
    """The network's direct answer: row, the value of the source."""

    def answer(value):
        shown = jnp.zeros((chain.length, chain.values)).at[source, value].set(1.0)
        return jnp.exp(net(shown, jnp.asarray(query)))

    return jax.vmap(answer)(jnp.arange(chain.values))


def scaffolded(
    net: Conditionals, chain: LocalChain, source: int, query: int
) -> Float[Array, "v v"]:
    """The same through the variables between, each from the last: their values are summed over.

    This is the mean of what sampled intermediate values give, without its sampling noise.
    """
    law = jnp.eye(chain.values)
    for place in range(source, query):
        law = law @ estimate(net, chain, place, place + 1)
    return law
