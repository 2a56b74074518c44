"""Resampling through which gradients of the evidence pass.

`StopGradient`: Scibior and Wood (2021), "Differentiable particle filtering without modifying the
forward pass". `Soft`: Karkus, Hsu and Lee (2018), "Particle filter networks", section 3.2.
"""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .base import Resampler
from .systematic import Systematic


class _Wrapped(Resampler):
    """Draws as another resampler does, whose threshold counts."""

    differentiable: ClassVar[bool] = True
    resampler: Resampler = eqx.field(default_factory=Systematic)

    def _draw(self, key, weights):
        return self.resampler._draw(key, weights)

    def _draw_conditional(self, key, weights, retained):
        return self.resampler._draw_conditional(key, weights, retained)

    def needed_at(self, size, n):
        """See `Resampler.needed_at`."""
        return self.resampler.needed_at(size, n)


class StopGradient(_Wrapped):
    """Another resampler, and after it weights whose value is the mean and whose gradient is not.

    Law: that of the resampler it wraps, number for number. Where the draws do not depend on the
    parameters (reparameterised, or from a `Proposal` under `stop_gradient`) the gradient of the
    evidence Z-hat is unbiased, for every resampler, and that of its logarithm consistent: what
    selection should have noticed stays in the weight.
    """

    def selection(self, log_priority):
        """See `Resampler.selection`."""
        return jax.lax.stop_gradient(log_priority)


class Soft(_Wrapped):
    """Resample by a mixture, `share` of the weights and the rest uniform over living particles.

    Law: proper weighting is kept, what selection leaves out stays as a weight. Its gradient is
    biased: it passes through the weights that stay and not through the choice of ancestors.
    """

    share: Float[Array, ""] = eqx.field(
        default=0.5, converter=lambda x: jnp.asarray(x, dtype=float)
    )

    def selection(self, log_priority):
        """See `Resampler.selection`."""
        share = self.share.astype(log_priority.dtype)
        alive = ~jnp.isneginf(log_priority)
        count = jnp.maximum(jnp.sum(alive), 1).astype(log_priority.dtype)
        mixture = jnp.logaddexp(
            jnp.log(share) + jax.nn.log_softmax(log_priority), jnp.log1p(-share) - jnp.log(count)
        )
        return jnp.where(alive, mixture + jax.nn.logsumexp(log_priority), -jnp.inf)
