"""A field of a prior: one number, kept as an array so that another value compiles nothing."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp


def number(default: float) -> Any:
    """A scalar field with a default."""
    return eqx.field(converter=lambda x: jnp.asarray(x, dtype=float), default=default)
