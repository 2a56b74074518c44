"""What one execution of a generative function did."""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Float, PyTree

from .partial import Choices


class Trace(eqx.Module):
    """The record of one execution. It holds no args, no population weight and no hot state.

    - `choices`: the value of every sampled site.
    - `score`: log density of all sampled sites, nats.
    - `log_weight`: sum of all `observe` and `factor` terms, nats.
    - `retval`: what the function returned.
    - `log_probs`: the log density of each site instance (for an estimated density the estimate
      itself, which Metropolis-Hastings reuses), summing to `score`.
    - `active`: per site, None or where its instances happened (an untaken branch and the steps
      after a finish did not).
    """

    choices: Choices
    score: Float[Array, "..."]
    log_weight: Float[Array, "..."]
    retval: PyTree
    log_probs: Any
    active: Any
