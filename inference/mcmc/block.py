"""Resampling a block of steps from the model, the rest of the text kept."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ...ppl.selection import select
from .kernel import Kernel
from .suffix import draw_step, log_index_ratio, step_sites
from .transition import log_uniform, settle, written


class BlockMH(Kernel):
    """`BlockMH(size)`: a block of `size` steps drawn anew from the model, before and after kept.

    The block begins at a step uniform among those that happened. Accepted by the Metropolis-
    Hastings ratio of regenerating it, in which the later steps count (their densities and factors
    given the new block), times len(x) / len(x'). If the new block ends the text the later steps
    are dropped, and if it no longer ends it they are drawn. `size` may be an array: another
    compiles nothing.

    Errors: a model without steps.
    """

    size: Int[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, jnp.int32))

    def move(self, key, target, chain, steps=None):
        """See `Kernel.move`."""
        key_index, key_draw, key_accept = jax.random.split(key, 3)
        old = written(chain.trace)
        s = draw_step("BlockMH", key_index, target, old)
        block = select(*step_sites("BlockMH", target, old))[s : s + jnp.maximum(self.size, 1)]
        trace, log_w, state = target.regenerate(key_draw, old, block, steps)
        log_ratio = log_w + log_index_ratio("BlockMH", target, old, trace, s, log_w)
        accept = log_uniform(key_accept, log_ratio) < log_ratio
        return settle(accept, chain, trace, state)
