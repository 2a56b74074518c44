"""What every resampler shares: the interface, when to resample, and the degenerate populations.

The conditional form follows Andrieu, Doucet and Holenstein (2010), "Particle Markov chain Monte
Carlo methods", section 4.3, for a resampler of any law r: the retained path is given an offspring
slot by size-biasing r, which keeps the extended target of conditional SMC invariant.
"""

from abc import abstractmethod
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray


def effective_sample_size(log_weights: Float[Array, " n"]) -> Float[Array, ""]:
    """Effective sample size (sum w)^2 / sum w^2 of unnormalized log-weights in nats.

    Between 1 and n; 0 if every particle is dead; NaN if a weight is NaN or +inf.
    Source: Kong, Liu and Wong (1994).
    """
    weights = _relative_weights(log_weights)
    square = jnp.sum(weights * weights)
    return jnp.sum(weights) ** 2 / jnp.where(square == 0, 1, square)


def is_dead(log_weights: Float[Array, " n"]) -> Bool[Array, ""]:
    """Whether every particle has weight zero (log-weight -inf). False if a log-weight is NaN."""
    return jnp.all(log_weights == -jnp.inf)


class Resampler(eqx.Module):
    """An unbiased resampler: n weighted particles in, n ancestor indices out.

    **Law.** With W the normalized weights, E[#{j: a[j] = i}] = n W[i] for each i. A particle of
    weight zero (log-weight -inf, or so far below the largest that its relative weight underflows)
    is never an ancestor; this holds by construction, not up to rounding.

    Log-weights are in nats, need not be normalized, and may carry any common offset. `ancestors`
    and `conditional` are pure functions of their arguments and work under `jit` and `vmap`.

    **Degenerate populations.** If every weight is zero, or any log-weight is NaN or +inf, there
    is no law to draw from: the ancestors are then the identity, so that the population is left
    alone. Callers tell these cases apart with `is_dead` and `effective_sample_size`.

    Attributes:
        ess_threshold: resample when the effective sample size is below this fraction of n; 0 is
            never, 1 is always unless all weights are equal.

    Source: Gerber, Chopin and Whiteley (2019), "Negative association, ordering and convergence
    of resampling methods", for the schemes and their comparison.
    """

    ess_threshold: Float[Array, ""] = eqx.field(
        default=0.5, converter=lambda x: jnp.asarray(x, dtype=float), kw_only=True
    )

    # A loop that may end early has no reverse-mode gradient.
    differentiable: ClassVar[bool] = False

    @abstractmethod
    def _draw(self, key: PRNGKeyArray, weights: Float[Array, " n"]) -> Int[Array, " n"]:
        """Ancestors given finite weights of maximum one."""

    @abstractmethod
    def _draw_conditional(
        self, key: PRNGKeyArray, weights: Float[Array, " n"], retained: Int[Array, ""]
    ) -> tuple[Int[Array, " n"], Int[Array, ""]]:
        """Ancestors and position, given weights of maximum one and `weights[retained] > 0`."""

    def needed(self, log_weights: Float[Array, " n"]) -> Bool[Array, ""]:
        """Whether to resample: 0 < ESS < ess_threshold * n (False for dead or NaN populations)."""
        return self.needed_at(effective_sample_size(log_weights), log_weights.shape[0])

    def needed_at(self, size: Float[Array, ""], n: int) -> Bool[Array, ""]:
        """Whether to resample n particles of effective size `size`."""
        limit = self.ess_threshold.astype(size.dtype) * n
        return (size > 0) & (size < limit)

    def selection(self, log_priority: Float[Array, " n"]) -> Float[Array, " n"]:
        """The log-weights that ancestors are drawn by; the weight that is left is the ratio."""
        return log_priority

    def ancestors(self, key: PRNGKeyArray, log_weights: Float[Array, " n"]) -> Int[Array, " n"]:
        """Draw int32 ancestor indices; slot j of the new population copies particle a[j].

        The order of the slots is part of each resampler's law; see its class. Identity if the
        population is dead or has a NaN or +inf log-weight.
        """
        weights, usable = usable_weights(log_weights)
        identity = jnp.arange(weights.shape[0], dtype=jnp.int32)
        return jnp.where(usable, self._draw(key, weights), identity)

    def conditional(
        self, key: PRNGKeyArray, log_weights: Float[Array, " n"], retained: Int[Array, ""]
    ) -> tuple[Int[Array, " n"], Int[Array, ""]]:
        """Draw ancestors given that particle `retained` has offspring, and one of its slots.

        **Law.** With r(a | W) the law of `ancestors`, slots included, the pair (a, b) is drawn
        with probability r(a | W) 1[a[b] = retained] / (n W[retained]): a is size-biased by the
        retained particle's number of offspring, and b is uniform among these.

        Returns:
            The int32 ancestors and the position b, with a[b] = retained always. If the retained
            particle has weight zero, or is not an index of the population, or the population is
            degenerate, the law is undefined: identity ancestors and position -1.
        """
        weights, usable = usable_weights(log_weights)
        n = weights.shape[0]
        retained = jnp.asarray(retained, jnp.int32)
        inside = jnp.clip(retained, 0, n - 1)
        usable &= (inside == retained) & (weights[inside] > 0)
        inside = jnp.where(usable, inside, jnp.argmax(weights).astype(jnp.int32))
        drawn, position = self._draw_conditional(key, weights, inside)
        drawn = drawn.at[position].set(inside)
        identity = jnp.arange(n, dtype=jnp.int32)
        return jnp.where(usable, drawn, identity), jnp.where(usable, position, -1)


def _relative_weights(log_weights: Float[Array, " n"]) -> Float[Array, " n"]:
    if jnp.finfo(log_weights.dtype).bits < 32:  # too coarse for cumulative sums
        log_weights = log_weights.astype(jnp.float32)
    top = jnp.max(log_weights)
    return jnp.exp(log_weights - jnp.where(top == -jnp.inf, 0, top))


def usable_weights(
    log_weights: Float[Array, " n"],
) -> tuple[Float[Array, " n"], Bool[Array, ""]]:
    """Weights of maximum one, and whether there is a law to draw from (if not all are one)."""
    weights = _relative_weights(lax.stop_gradient(log_weights))
    usable = jnp.max(weights) == 1
    return jnp.where(usable, weights, 1), usable


def split(key: PRNGKeyArray, num: int = 2) -> list[PRNGKeyArray]:
    """Split a key into a list, to unpack."""
    return list(jax.random.split(key, num))
