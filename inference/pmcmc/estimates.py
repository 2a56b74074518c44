"""Conditional runs on models with a density that is only estimated (`marginal`, `normalize`).

Pseudo-marginal, Andrieu and Roberts (2009): what is moved is the choices together with the
randomness of their estimates, of which the trace's log densities are all that weights need. A
retained particle therefore has the estimates that it was made with, and a path drawn from a run
takes along those of its particles; nothing is estimated again. (An estimate inside a *proposal*
is the exception: given the choices it is drawn anew, from its conditional law.)
"""

from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from ...ppl.errors import EstimatedDensity
from ...ppl.feynman_kac import Retained
from ...ppl.keys import particle_key
from ...ppl.partial import Choices, total
from ...ppl.target import Target
from ...ppl.trace import Trace
from ..driver import Driver
from ..mcmc.kernel import Kernel
from ..mcmc.transition import COMPLETE, at
from ..moves import Independent
from ..population import get_row
from ..smc import SMC
from ..smoothing.forward import filtering


def estimated(target: Target, choices: Choices) -> bool:
    """Is some density of the target's model only estimated?"""
    model = target.state_space()

    def run(choices, args):
        return model.run_to(None, target.joined(choices), args, None, COMPLETE).log_weight

    try:
        jax.eval_shape(run, choices, target.args)
    except EstimatedDensity:
        return True
    return False


def remembering(
    smc: SMC, target: Target, retained: Choices | None, log_probs: Any | None
) -> Driver:
    """The filter that keeps the log densities of every move.

    With retained choices `log_probs` are those that they had.
    """
    driver = filtering(smc).driver(target, retained)
    first, later = {}, {}
    if retained is not None:
        first, later = driver.fk.model.split(log_probs or {}, target.args)
    return replace(driver, moves=Remembered(first, later), kernel=Still())


class Remembered(Independent):
    """Independent draws; the retained particle's log densities are given, init's and the steps'."""

    first: Any
    later: Any

    def init(self, fk, key, i, given, retained):
        """See `Moves.init`."""
        return fk.init(particle_key(key, i), given, _knowing(retained, self.first))

    def step(self, fk, key, i, given, state, t, retained):
        """See `Moves.step`."""
        known = _knowing(retained, get_row(self.later, t))
        return fk.step(particle_key(key, i), given, state, t, known)


def _knowing(retained: Retained | None, log_probs: Any) -> Retained | None:
    return None if retained is None else Retained(retained.choices, retained.here, log_probs)


class Still(Kernel):
    """Moves nothing, never: with a kernel the driver stores log densities beside the choices."""

    def due(self, steps):
        """See `Kernel.due`."""
        return jnp.zeros((), bool)

    def move(self, key, target, chain, steps=None):
        """See `Kernel.move`."""
        return chain


def trace_of(
    key: PRNGKeyArray,
    target: Target,
    choices: Choices,
    log_probs: Any | None,
    steps: Int[Array, ""] | None,
) -> tuple[Trace, PyTree]:
    """`at`, with these log densities where they are given (what the key estimates is dropped)."""
    if log_probs is None:
        return at(target, choices, steps)
    trace, state = at(target, choices, steps, key)
    old = (log_probs, total(log_probs))
    return eqx.tree_at(lambda t: (t.log_probs, t.score), trace, old), state
