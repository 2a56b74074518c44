"""Metropolis-Hastings that draws selected choices anew from their distributions."""

import jax

from ...ppl.selection import Selection
from .kernel import Kernel
from .transition import log_uniform, movable, settle, written


class MH(Kernel):
    """`MH(selection)`: regenerate the selected choices, accept with probability min(1, e^log_w).

    Choices that the target constrains are never moved. `ppl.select("token")[t:]` regenerates a
    suffix. Densities that are only estimated keep the estimate of the current trace
    (pseudo-marginal, Andrieu and Roberts 2009).
    """

    selection: Selection

    def move(self, key, target, chain, steps=None):
        """See `Kernel.move`."""
        key_propose, key_accept = jax.random.split(key)
        old = written(chain.trace)
        movable("MH", target, old, self.selection)
        trace, log_w, state = target.regenerate(key_propose, old, self.selection, steps)
        # NaN (zero over zero) is rejected.
        return settle(log_uniform(key_accept, log_w) < log_w, chain, trace, state)
