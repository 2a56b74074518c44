"""Semirings of log weights: sum, max, and the entropy-weighted one between them.

"Times" is the sum of log weights in all of them. A sum with entropy weight w is

    w log sum_i exp(x_i / w) = max over laws q of  E_q[x] + w H(q):

w = 1 adds weights, w -> 0 takes the largest. Powered sums: Liu and Ihler (2013), "Variational
algorithms for marginal MAP", section 3; as types of inference: Lazaro-Gredilla, Ku, Murphy and
George (2024), "What type of inference is planning?", table 1.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ._log_space import is_concrete, log_sum_exp


class Semiring(eqx.Module):
    """Addition of log weights; its law: associative, commutative, distributes over +, zero -inf."""

    @abc.abstractmethod
    def add(self, values: Float[Array, "..."], axis: int = -1) -> Float[Array, "..."]:
        """The sum over an axis; -inf, with gradient zero, where all entries are -inf."""

    def product(
        self, left: Float[Array, "*b i j"], right: Float[Array, "*b j k"]
    ) -> Float[Array, "*b i k"]:
        """Matrix product: sums over j of left + right."""
        return self.add(left[..., :, :, None] + right[..., None, :, :], axis=-2)

    def past(self, steps: Float[Array, "t k k"]) -> Float[Array, "t k k"]:
        """Products of the first 1, 2, ..., t matrices, in O(log t) parallel rounds."""
        return jax.lax.associative_scan(self.product, steps)

    def future(self, steps: Float[Array, "t k k"]) -> Float[Array, "t k k"]:
        """Products of the last t, t - 1, ..., 1 matrices, in O(log t) parallel rounds."""

        def flipped(right, left):
            return self.product(left, right)

        return jax.lax.associative_scan(flipped, steps, reverse=True)


class LogSum(Semiring):
    """Sum of weights: marginal inference."""

    def add(self, values, axis=-1):
        """See `Semiring.add`."""
        return log_sum_exp(values, axis=axis)


class Max(Semiring):
    """Largest weight: maximum a posteriori. The gradient is shared equally by ties."""

    def add(self, values, axis=-1):
        """See `Semiring.add`."""
        return tempered_sum(values, jnp.zeros((), values.dtype), axis)


class Tempered(Semiring):
    """Entropy weight `weight` >= 0, a number that may be traced: 1 is `LogSum`, 0 is `Max`."""

    weight: Float[Array, ""] = eqx.field(converter=lambda w: as_weight(w))

    def add(self, values, axis=-1):
        """See `Semiring.add`."""
        return tempered_sum(values, self.weight.astype(values.dtype), axis)


def as_weight(weight: ArrayLike) -> Float[Array, "..."]:
    """Entropy weights as an array; ValueError if one that can be seen is negative or NaN."""
    weight = jnp.asarray(weight, dtype=float)
    if is_concrete(weight) and not (np.asarray(weight) >= 0).all():
        raise ValueError(
            f"entropy weights are not negative (1: sum, 0: maximize), got {np.asarray(weight)}"
        )
    return weight


def tempered_sum(
    values: Float[Array, "..."], weight: Float[Array, ""], axis: int
) -> Float[Array, "..."]:
    """W log sum exp(values / w) over the axis, the maximum at w = 0.

    Gradients: by the values softmax(values / w) (at 0 the maxima, equally), by w the entropy of
    that law (at w = 0: zero); zero where all values are -inf.
    """
    possible = values != -jnp.inf  # NaN is: it must not be hidden
    some = jnp.any(possible, axis=axis)
    held = jnp.where(possible, values, 0.0)
    top = jax.lax.stop_gradient(jnp.max(values, axis=axis, keepdims=True))
    top = jnp.where(top == -jnp.inf, 0.0, top)
    # Colder than this is 0: the entropy's gradient, of order w^-2, would overflow.
    warm = weight > jnp.finfo(values.dtype).eps ** 2
    w = jnp.where(warm, weight, 1.0)
    terms = jnp.where(possible, jnp.exp(jnp.where(possible, (held - top) / w, 0.0)), 0.0)
    total = jnp.sum(terms, axis=axis)
    soft = w * jnp.log(jnp.where(some, total, 1.0)) + jnp.squeeze(top, axis)
    hard = jnp.where(some, jnp.max(jnp.where(possible, held, -jnp.inf), axis=axis), 0.0)
    return jnp.where(some, jnp.where(warm, soft, hard), -jnp.inf)
