"""Laws of coordinates z in R^d given a vector: what a head is, mixtures of Gaussians, ensembles.

Bishop (1994), "Mixture density networks", sections 3 and 4, with full covariances; ensembles of
posterior networks: Hermans, Delaunoy, Rozet, Wehenkel, Begy and Louppe (2022), "A trust crisis in
simulation-based inference? Your posterior approximations can be unfaithful", section 4.
"""

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from ..network import Network, network
from .encoders import perceptron
from .mixtures import Mixture

STEEPEST = 8.0
"""Bound of a log scale that a network gives, in both directions."""


def bounded(raw: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """A log scale below `STEEPEST` in size, `raw` near 0."""
    return STEEPEST * jnp.tanh(raw / STEEPEST)


class Density(eqx.Module):
    """A law of z in R^d that depends on a vector, the context; its float arrays are trained."""

    @abc.abstractmethod
    def log_prob(self, z: Float[Array, " d"], context: Float[Array, "..."]) -> Float[Array, ""]:
        """Log density at z, nats."""

    @abc.abstractmethod
    def sample(self, key: PRNGKeyArray, context: Float[Array, "..."]) -> Float[Array, " d"]:
        """One draw, differentiable in the parameters where the family allows."""


class MixtureDensity(Density):
    """See `mixture_density`."""

    net: Network
    size: int = eqx.field(static=True)
    components: int = eqx.field(static=True)

    def law(self, context: Float[Array, " c"]) -> Mixture:
        """The mixture itself: for its moments, conditionals, or as a law of `vi.guides`."""
        d, k = self.size, self.components
        cuts = [k, k + k * d, k + 2 * k * d]
        logits, means, logs, rest = jnp.split(self.net(context), cuts)
        rows, columns = jnp.tril_indices(d, -1)
        lower = jnp.zeros((k, d, d), rest.dtype).at[:, rows, columns].set(rest.reshape(k, -1))
        diagonal = jax.vmap(jnp.diag)(jnp.exp(bounded(logs.reshape(k, d))))
        return Mixture(logits, means.reshape(k, d), lower + diagonal)

    def log_prob(self, z, context):
        """See `Density`."""
        return self.law(context).log_prob(z)

    def sample(self, key, context):
        """See `Density`; without gradient in the weights of the components."""
        return self.law(context).sample(key)


def mixture_density(
    key: PRNGKeyArray,
    size: int,
    context: int,
    *,
    components: int = 8,
    width: int = 64,
    depth: int = 2,
) -> MixtureDensity:
    """Gaussians with any covariances whose weights, means and factors a perceptron gives.

    One pass for a density and for a draw. For posteriors with few modes and light tails; a
    `spline_flow` bends.

    Args:
        key: of the network's weights, and of the means at the start, spread around 0 so that the
            components differ; all else is as of N(0, I).
        size: d.
        context: length of the vector.
        components: how many Gaussians.
        width: of the perceptron's hidden layers.
        depth: how many of them.
    """
    outputs = components * (1 + 2 * size + size * (size - 1) // 2)
    key_net, key_means = jax.random.split(key)
    zero = nnx.initializers.zeros_init()
    net = perceptron(nnx.Rngs(key_net), context, width, depth, outputs, kernel_init=zero)
    means = slice(components, components * (1 + size))
    start = 0.5 * jax.random.normal(key_means, (components * size,))
    bias = net.layers[-1].bias
    bias[...] = jnp.zeros(outputs, start.dtype).at[means].set(start)
    return MixtureDensity(network(net), size, components)


class Ensemble(Density):
    """The mixture in equal parts of `count` networks of one kind, stacked along a first axis.

    The context has that axis too: each network reads its own encoder's.
    """

    members: Density
    count: int = eqx.field(static=True)

    def log_prob(self, z, context):
        """See `Density`."""
        one = eqx.filter_vmap(lambda member, c: member.log_prob(z, c))
        return jax.nn.logsumexp(one(self.members, context)) - math.log(self.count)

    def sample(self, key, context):
        """See `Density`."""
        key_member, key_z = jax.random.split(key)
        i = jax.random.randint(key_member, (), 0, self.count)
        arrays, rest = eqx.partition(self.members, eqx.is_array)
        member = eqx.combine(jax.tree.map(lambda x: x[i], arrays), rest)
        return member.sample(key_z, context[i])
