"""A fixed ramp of exponents, with exact bridging.

Neal (2001), "Annealed importance sampling", for the bridge; as a ramp over tokens in Power-SMC
(arXiv 2602.10273), whose increment (a_t - a_{t-1}) log p(past) + a_t log p(new) is the ratio of
two of the priorities here.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .base import Annealing


def _array(x):
    return jnp.asarray(x, dtype=float)


class Ramp(Annealing):
    """The potentials so far to the power beta_t = start + (1 - start) (t / steps)^power, then 1.

    Early potentials are believed little and later in full: after t steps the population is
    resampled as if its target were the product of all potentials so far, to the power beta_t.
    `steps` is by default the model's length; `power` 1 is a line. Law: the target is kept.
    """

    start: Float[Array, ""] = eqx.field(default=0.0, converter=_array)
    steps: Float[Array, ""] | None = eqx.field(
        default=None, converter=lambda x: None if x is None else _array(x)
    )
    power: Float[Array, ""] = eqx.field(default=1.0, converter=_array)

    def priority(self, weighted, t, length):
        """See `Annealing.priority`."""
        dtype = weighted.log_weights.dtype
        steps = jnp.asarray(length, dtype) if self.steps is None else self.steps.astype(dtype)
        done = jnp.clip(t.astype(dtype) / jnp.maximum(steps, 1), 0, 1)
        start = self.start.astype(dtype)
        exponent = start + (1 - start) * done ** self.power.astype(dtype)
        return weighted.log_weights + (exponent - 1) * weighted.log_potential, exponent
