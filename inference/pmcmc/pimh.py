"""Particle independent Metropolis-Hastings: whole runs of a filter as proposals.

Andrieu, Doucet and Holenstein (2010), section 2.4.1.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ...ppl.compiled import compiled
from ...ppl.partial import Choices
from ...ppl.target import Target, as_target
from ..mcmc.kernel import Kernel
from ..mcmc.transition import log_uniform, settle
from ..smc import SMC
from ..smoothing.forward import filtering
from .estimates import estimated, trace_of
from .sweep import sweep


class Draws(eqx.Module):
    """What a chain of runs went through, one entry a move.

    - `choices` [moves, ...], `accepted` [moves].
    - `log_evidence` [moves]: log Z-hat of the current run; -inf as long as every run has died.
    """

    choices: Choices
    log_evidence: Float[Array, "*moves"]
    accepted: Float[Array, "*moves"]


class PIMH(Kernel):
    """`PIMH(smc)`: propose a fresh run of the filter, accept with the ratio of the Z-hats.

    Law: leaves the target invariant. As a kernel on traces, which do not know the Z-hat of the run
    they came from, each move first draws that run again, conditional on the current choices: two
    runs a move. `run` keeps it: one run a move. Where a density is only estimated (`marginal`,
    `normalize`) the estimates are part of a run: those of the current choices are kept.
    """

    smc: SMC

    def __check_init__(self):
        filtering(self.smc)

    def move(self, key, target, chain, steps=None):
        """See `Kernel.move`."""
        key_old, key_new, key_accept = jax.random.split(key, 3)
        known = fresh = None
        if estimated(target, chain.trace.choices):
            known, fresh = chain.trace.log_probs, {}
        old = sweep(key_old, self.smc, target, chain.trace.choices, steps, remember=known)
        new = sweep(key_new, self.smc, target, None, steps, remember=fresh)
        log_ratio = new.log_evidence - old.log_evidence
        accept = (old.status.code == 0) & (log_uniform(key_accept, log_ratio) < log_ratio)
        # A dead run has no path: its log density is not asked for.
        key_state = jax.random.fold_in(key, 0)
        made = trace_of(key_state, target, new.choices, new.log_probs, steps)
        return settle(accept, chain, *made)

    def run(self, key: PRNGKeyArray, target: Target, moves: int) -> Draws:
        """A chain from a first run of the filter."""
        return _run(self, key, as_target(target), moves)


@compiled
def _run(pimh: PIMH, key: PRNGKeyArray, target: Target, moves: int) -> Draws:
    first = sweep(jax.random.fold_in(key, 0), pimh.smc, target)

    def move(current, i):
        choices, log_evidence = current
        key_run, key_accept = jax.random.split(jax.random.fold_in(key, i))
        new = sweep(key_run, pimh.smc, target)
        log_ratio = new.log_evidence - log_evidence
        # From a run that died to one that did not: always. From dead to dead: NaN, never.
        accept = log_uniform(key_accept, log_ratio) < log_ratio

        def pick(a, b):
            return jnp.where(accept, a, b)

        choices = jax.tree.map(pick, new.choices, choices)
        log_evidence = pick(new.log_evidence, log_evidence)
        return (choices, log_evidence), Draws(choices, log_evidence, accept.astype(float))

    start = (first.choices, first.log_evidence)
    return jax.lax.scan(move, start, jnp.arange(1, moves + 1))[1]
