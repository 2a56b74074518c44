"""A conjugate pair whose posterior is known, and estimators with planted defects, as data."""

import equinox as eqx
import jax
import jax.numpy as jnp

from feynkac import ppl
from feynkac.ppl import dist


@ppl.program
def pair(ctx):
    """x ~ N(0, I_2), y ~ N(x, 1/4): the posterior is N(0.8 y, 0.2 I_2)."""
    x = ctx.sample("x", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    ctx.sample("y", dist.Normal(x, 0.5).to_event(1))


class Estimator(eqx.Module):
    """Ninety-nine draws: shifted by posterior deviations, of another width, or of the prior."""

    shift: jax.Array
    width: jax.Array
    ignore: jax.Array

    def __init__(self, shift=0.0, width=1.0, ignore=0.0):
        self.shift, self.width, self.ignore = (
            jnp.asarray(x, float) for x in (shift, width, ignore)
        )

    def __call__(self, key, target):
        y, deviation = target.constraints["y"], jnp.sqrt(0.2)
        mean = (1 - self.ignore) * (0.8 * y) + self.shift * deviation
        scale = self.width * ((1 - self.ignore) * deviation + self.ignore)
        return {"x": mean[None] + scale * jax.random.normal(key, (99, 2))}


DEFECTS = {
    "width 0.7": Estimator(width=0.7),
    "prior only": Estimator(ignore=1.0),
    "shift 0.5": Estimator(shift=0.5),
}
