"""What a gradient strategy is: how the gradient of an expectation passes through a site.

The estimates are those of Becker et al. (2024), "Probabilistic programming with programmable
variational inference" (PLDI), as one surrogate for reverse mode after Schulman et al. (2015),
"Gradient estimation using stochastic computation graphs".
"""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, PRNGKeyArray


class Report(eqx.Module):
    """What one instance of a site adds to the surrogate; leaves are functions of its parameters.

    - `score`, nats: is multiplied with the objective less a baseline.
    - `values` [K, *event], `weights` [K]: values to put in the place of the one drawn, and what the
      objective there is multiplied with.
    """

    score: Float[Array, "..."] | None = None
    values: Array | None = None
    weights: Float[Array, "..."] | None = None


class Strategy(eqx.Module):
    """A gradient strategy for the sites that it is given to.

    Law, unless `biased`: with the terms of all sites added, the gradient of the surrogate is an
    unbiased estimate of the gradient of the objective's expectation.
    """

    biased: ClassVar[bool] = False

    @abc.abstractmethod
    def refusal(self, d: dist.Distribution) -> str | None:
        """Why it cannot be used with a distribution; None if it can."""

    def value(self, key: PRNGKeyArray | None, d: dist.Distribution, value: Array) -> Array:
        """The value the program goes on with; without its gradient, unless the draw carries it."""
        return jax.lax.stop_gradient(value)

    def report(
        self,
        key: PRNGKeyArray | None,
        d: dist.Distribution,
        value: Array,
        log_prob: Float[Array, ""],
    ) -> Report | None:
        """What the site adds to the surrogate; None if the draw carries its gradient."""
        return None

    def term(
        self, weights: Float[Array, "m k"], drawn: Float[Array, ""], branches: Float[Array, "m k"]
    ) -> Float[Array, " m"]:
        """The terms of m instances, given the objective as drawn and in their branches.

        Differences from the objective as drawn: right where the gradients of the weights, and of
        the weight of the value drawn if that has one, sum to zero.
        """
        return jnp.sum(weights * detached_difference(weights, branches, drawn), axis=-1)


def detached_difference(weights: Array, branches: Array, base: Array) -> Array:
    """Branches less base without gradient, 0 where the weight is 0 (an impossible value)."""
    difference = jnp.where(weights == 0, jnp.zeros_like(branches), branches - base)
    return jax.lax.stop_gradient(difference)


def plain(d: Any) -> Any:
    """The distribution inside `to_event` and `expand`."""
    while isinstance(d, (dist.Independent, dist.ExpandedDistribution)):
        d = d.base_dist
    return d


def type_name(d: Any) -> str:
    """What the distribution is called in messages."""
    return type(plain(d)).__name__


def is_reparameterized(d: Any) -> bool:
    """Do draws carry their gradient, implicit gradients included?"""
    # NumPyro's `has_rsample` compares names of parameters and says yes where there are none.
    if isinstance(d, (dist.MixtureSameFamily, dist.MixtureGeneral, dist.ImproperUniform)):
        return False
    if hasattr(d, "base_dist") and not is_reparameterized(d.base_dist):
        return False
    return bool(d.has_rsample) and (isinstance(d, dist.Delta) or not d.is_discrete)


def salted(key: PRNGKeyArray | None, salt: int) -> PRNGKeyArray:
    """A key apart from that of the draw."""
    if key is None:
        raise ValueError("a gradient strategy needs the key of the draw")
    return jax.random.fold_in(key, salt)
