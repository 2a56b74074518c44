"""Metropolis-Hastings that draws selected choices anew from their distributions."""

import equinox as eqx
import jax
import jax.numpy as jnp

from ...ppl.partial import spelled
from ...ppl.selection import Selection
from ...ppl.trace import Trace
from .kernel import Chain, Kernel


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
        old = chain.trace
        old = Trace(
            old.choices,
            old.score,
            old.log_weight,
            None,
            old.log_probs,
            spelled(old.active, old.log_probs),
        )
        trace, log_w, state = target.regenerate(key_propose, old, self.selection, steps)
        # Uniform on (0, 1]: a ratio of zero is never accepted. NaN (zero over zero) is rejected.
        log_u = jnp.log1p(-jax.random.uniform(key_accept, dtype=log_w.dtype))
        accept = log_u < log_w

        def pick(new, old):
            return jnp.where(accept, new, old)

        current = eqx.tree_at(
            lambda t: t.retval, old, chain.trace.retval, is_leaf=lambda x: x is None
        )
        if chain.state is None:
            state = None
        new_trace, new_state = jax.tree.map(pick, (trace, state), (current, chain.state))
        return Chain(new_trace, new_state, accept.astype(log_w.dtype))
