"""Where chains start: over-dispersed, at positive density."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray

from ...ppl.partial import Choices, as_given, overlay
from ...ppl.target import Target
from ...ppl.trace import Trace
from .transition import log_gamma, written

TRIES = 1000


def start(
    key: PRNGKeyArray, target: Target, init: Choices | None = None, tries: int = TRIES
) -> tuple[Trace, Bool[Array, ""]]:
    """A draw of the model under the constraints, and whether its density is positive and finite.

    Up to `tries` draws are made until one is: the start has the law of the model's own draws given
    that they are possible under the target. Sites in `init` have its values.
    """
    given = overlay(as_given(target.constraints), as_given(init))

    def draw(i):
        trace = written(target.model.run(jax.random.fold_in(key, i), given, target.args).trace())
        return trace, jnp.isfinite(log_gamma(target, trace))

    def more(carry):
        i, _, good = carry
        return ~good & (i < tries)

    def again(carry):
        i, *_ = carry
        return i + 1, *draw(i)

    return jax.lax.while_loop(more, again, (jnp.int32(1), *draw(jnp.int32(0))))[1:]
