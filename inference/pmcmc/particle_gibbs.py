"""Particle Gibbs: conditional SMC as a Markov kernel.

Andrieu, Doucet and Holenstein (2010), section 2.4.3; with ancestor sampling, Lindsten, Jordan and
Schon (2014); with backward sampling, Whiteley's discussion of the first and Lindsten and Schon
(2013), section 5.4.
"""

import equinox as eqx
import jax
import jax.numpy as jnp

from ..mcmc.kernel import Kernel
from ..mcmc.transition import settle
from ..smc import SMC
from ..smoothing.forward import filtering
from .estimates import estimated, trace_of
from .sweep import Sweep, sweep


class ParticleGibbs(Kernel):
    """`ParticleGibbs(smc)`: a run of the filter that retains the current choices, then one path.

    Law: leaves the target invariant for every number of particles (with one it stands still), every
    unbiased resampler, threshold, proposal, twist and annealing that keeps its target.

    - `ancestor_sampling`: at each step the retained future may be attached to another particle:
      mixes well with few particles. The model is run on that future from every particle until the
      states agree: one step if a state is a function of its step's choices, all that are left (at
      most) if not, as with a cache. Exact in either case.
    - `backward_sampling`: the path is drawn backwards at the end in the same way; no `Hot` state.

    If the retained choices have weight zero, or the run fails otherwise, nothing moves and the
    acceptance is 0; `sweep` says why. Acceptance is the share of moves that changed something.

    Where a density is only estimated (`marginal`, `normalize`; not inside a `product`) the choices
    are moved together with their estimates: the trace's own are retained, those of the path drawn
    are its new ones (pseudo-marginal, see `estimates`). With ancestor or backward sampling that is
    an error.
    """

    smc: SMC
    ancestor_sampling: bool = eqx.field(static=True, default=False)
    backward_sampling: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        filtering(self.smc)

    def sweep(self, key, target, retained, steps=None, remember=None) -> Sweep:
        """The path drawn, log Z-hat of the conditional run, and its status.

        `remember`: the log densities of the retained choices, where some are estimates.
        """
        return sweep(
            key,
            self.smc,
            target,
            retained,
            steps,
            self.ancestor_sampling,
            self.backward_sampling,
            remember,
        )

    def move(self, key, target, chain, steps=None):
        """See `Kernel.move`."""
        known = chain.trace.log_probs if estimated(target, chain.trace.choices) else None
        made = self.sweep(key, target, chain.trace.choices, steps, known)
        key_state = jax.random.fold_in(key, 0)
        trace, state = trace_of(key_state, target, made.choices, made.log_probs, steps)
        old, new = jax.tree.leaves(chain.trace.choices), jax.tree.leaves(made.choices)
        same = [jnp.all(a == b) for a, b in zip(old, new, strict=True)]
        changed = ~jnp.all(jnp.stack([jnp.ones((), bool), *same]))
        ok = made.status.code == 0
        return settle(ok, chain, trace, state, (ok & changed).astype(float))
