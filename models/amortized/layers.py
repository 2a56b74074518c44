"""Layers with parameters in JAX's float type, which is double under `jax_enable_x64`."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


def linear(inputs: int, outputs: int, **options: Any) -> nnx.Linear:
    """`nnx.Linear`."""
    return nnx.Linear(inputs, outputs, param_dtype=jnp.result_type(float), **options)


def layer_norm(width: int, **options: Any) -> nnx.LayerNorm:
    """`nnx.LayerNorm`."""
    return _LayerNorm(width, param_dtype=jnp.result_type(float), **options)


class _LayerNorm(nnx.LayerNorm):
    """Flax promotes doubles with singles in it, which strict promotion does not allow."""

    def __call__(self, x, *, mask=None):
        with jax.numpy_dtype_promotion("standard"):
            return super().__call__(x, mask=mask)
