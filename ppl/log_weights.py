"""Arithmetic of log weights (nats) in which a weight of zero stays zero; NaN is passed on."""

from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def product(log_weights: Iterable[Float[Array, "..."]]) -> Float[Array, "..."]:
    """The sum of one or more; -inf where one is, whatever the others are."""
    terms = list(log_weights)
    total = jnp.zeros((), np.result_type(*(x.dtype for x in terms)))
    for term in terms:
        total = total + term.astype(total.dtype)
    impossible = jnp.stack([jnp.isneginf(x) for x in terms]).any(0)
    return jnp.where(impossible, -jnp.inf, total)


def ratio(top: Float[Array, "..."], bottom: Float[Array, "..."]) -> Float[Array, "..."]:
    """The difference; -inf where `top` is, NaN where only `bottom` is."""
    known = jnp.where(jnp.isneginf(bottom), jnp.nan, bottom).astype(top.dtype)
    possible = ~jnp.isneginf(top)
    return jnp.where(possible, jnp.where(possible, top, 0.0) - known, -jnp.inf)


def gain(after: Float[Array, "..."], before: Float[Array, "..."]) -> Float[Array, "..."]:
    """What a step added to a log weight: the difference; -inf where one of the two is."""
    return ratio(jnp.where(jnp.isneginf(before), -jnp.inf, after), before)


def power(log_weight: Float[Array, "..."], exponent: Float[Array, ""]) -> Float[Array, "..."]:
    """The product with an exponent; -inf where the log weight is."""
    possible = ~jnp.isneginf(log_weight)
    raised = exponent.astype(log_weight.dtype) * jnp.where(possible, log_weight, 0.0)
    return jnp.where(possible, raised, -jnp.inf)
