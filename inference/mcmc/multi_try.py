"""Multiple-try Metropolis over suffixes.

Liu, Liang and Wong 2000, "The multiple-try method and local optimization in Metropolis sampling";
its form for proposals that do not depend on the current value, without a reference set, is in
Martino 2018, "A review of multiple try MCMC algorithms for signal processing", section 5 (I-MTM).
Given the step m and what precedes it, a suffix proposal is of that kind.
"""

import equinox as eqx
import jax
import jax.numpy as jnp

from .kernel import Kernel
from .suffix import Suffix, draw_step, suffixes
from .transition import log_uniform, settle, written


class MultiTry(Kernel):
    """`MultiTry(suffix, tries)`: `tries` new suffixes from one step on, one of them by weight.

    `suffix` is the `Suffix` kernel whose proposal is used. With w the weight of a suffix (see
    `Suffix`, the length included), one candidate J is drawn with probability proportional to w_j
    and accepted with min(1, sum_j w_j / (sum_j w_j - w_J + w(x))). The candidates are run together
    under `vmap`.
    """

    suffix: Suffix = eqx.field(default_factory=Suffix)
    tries: int = eqx.field(static=True, default=4)

    def __check_init__(self):
        if self.tries < 1:
            raise ValueError(f"MultiTry needs at least one try, got {self.tries}")

    def move(self, key, target, chain, steps=None):
        """See `Kernel.move`."""
        key_index, key_draw, key_pick, key_accept = jax.random.split(key, 4)
        old = written(chain.trace)
        m = draw_step("MultiTry", key_index, target, old)
        traces, log_w, states = suffixes(
            "MultiTry", key_draw, self.tries, target, old, m, self.suffix.proposal, steps
        )
        log_w = jnp.where(jnp.isnan(log_w), -jnp.inf, log_w)
        picked = jax.random.categorical(key_pick, log_w)
        # The old text has weight 1: these are ratios to it.
        others = jnp.where(jnp.arange(self.tries, dtype=picked.dtype) == picked, 0.0, log_w)
        log_ratio = jax.nn.logsumexp(log_w) - jax.nn.logsumexp(others)
        trace, state = jax.tree.map(lambda x: x[picked], (traces, states))
        accept = log_uniform(key_accept, log_ratio) < log_ratio
        return settle(accept, chain, trace, state)
