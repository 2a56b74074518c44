"""The power of a target's law."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..ppl.experts import power
from ..ppl.target import Target, as_target


class Power(eqx.Module):
    """`Power(alpha)(model)`: the target p(x)^alpha over whole sequences, constraints included.

    Law: exact under any algorithm. `alpha` above 1 sharpens, below flattens.
    """

    alpha: Float[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, dtype=float))

    def __call__(self, target: Any) -> Target:
        """The target to the power."""
        target = as_target(target)
        return Target(
            power(target.model, self.alpha), target.args, target.constraints, target.exponent
        )
