"""Sums over the values of a discrete site, whole or its most likely part."""

import equinox as eqx
import jax
import jax.numpy as jnp

from ....ppl import distributions
from ....ppl.enumeration import matches
from .base import Report, Strategy, detached_difference, salted, type_name


def _support_and_density(d):
    support = distributions.finite_support(d)
    if support is None:
        raise ValueError(f"{type_name(d)} has no finite support")
    log_q = jax.vmap(lambda v: distributions.log_density(d, v, check=True))(support)
    return support, jnp.exp(log_q)


def _no_finite_support(d):
    if distributions.finite_support(d) is not None:
        return None
    return f"{type_name(d)} has no finite support"


class Enumerate(Strategy):
    """Exact over the values of the site: the sum of q(v) times the objective with v in its place.

    What precedes the site stays, what follows is drawn anew with the same keys. `instances`: of the
    instances of a site under `scan`, `vmap` and `many`, this many are enumerated, drawn uniformly
    without replacement, times their share (all by default: of T steps each then costs a run of T
    steps).
    """

    instances: int | None = eqx.field(static=True, default=None)

    def refusal(self, d):
        """See `Strategy.refusal`."""
        return _no_finite_support(d)

    def report(self, key, d, value, log_prob):
        """All values but the one drawn."""
        support, q = _support_and_density(d)
        drawn = jnp.argmax(matches(support, value, 0))
        rest = (drawn + 1 + jnp.arange(support.shape[0] - 1)) % support.shape[0]
        return Report(values=support[rest], weights=q[rest])


class TopK(Strategy):
    """The k most likely values exactly, and one draw from the rest by its score.

    Liu, Regier, Tripuraneni, Jordan and McAuliffe (2019), "Rao-Blackwellized stochastic gradients
    for discrete distributions". The mean of the objective over the k values is the baseline of the
    rest. `instances` as of `Enumerate`.
    """

    k: int = eqx.field(static=True)
    instances: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.k < 1:
            raise ValueError(f"vi.TopK needs at least one value, got k={self.k}: or use vi.Score")

    def refusal(self, d):
        """See `Strategy.refusal`."""
        return _no_finite_support(d)

    def report(self, key, d, value, log_prob):
        """The k most likely values and one of the others."""
        support, q = _support_and_density(d)
        k = min(self.k, support.shape[0] - 1)
        fixed = jax.lax.stop_gradient(q)
        _, top = jax.lax.top_k(fixed, k)
        rest = fixed.at[top].set(0.0)
        left = jnp.sum(rest)
        other = jax.random.categorical(salted(key, 1), jnp.log(rest))
        safe = jnp.where(rest[other] == 0, 1.0, rest[other])
        weight = jnp.where(rest[other] == 0, 0.0, q[other] * (left / safe))
        chosen = jnp.append(top, other)
        return Report(values=support[chosen], weights=jnp.append(q[top], weight))

    def term(self, weights, drawn, branches):
        """Differences from the mean of the objective over the k values."""
        top = jax.lax.stop_gradient(weights[:, :-1])
        mass = jnp.sum(top, axis=-1, keepdims=True)
        kept = jnp.where(top == 0, jnp.zeros_like(top), branches[:, :-1])
        mean = jnp.sum(top * kept, axis=-1, keepdims=True) / jnp.where(mass == 0, 1.0, mass)
        return jnp.sum(weights * detached_difference(weights, branches, mean), axis=-1)
