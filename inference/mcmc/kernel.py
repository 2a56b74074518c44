"""What a Markov kernel is: a move of one trace that leaves the target invariant."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ...ppl.partial import spelled
from ...ppl.target import Target
from ...ppl.trace import Trace


class Chain(eqx.Module):
    """A trace of the target, the model's whole state after it, and the last acceptance rate."""

    trace: Trace
    state: PyTree
    acceptance: Float[Array, ""]

    def rated(self, acceptance: Float[Array, ""]) -> "Chain":
        """The chain with another acceptance rate."""
        return Chain(self.trace, self.state, acceptance)


class Kernel(eqx.Module):
    """A Markov kernel on traces.

    Law: it leaves the target invariant: if the choices are distributed as the target's normalised
    density they still are after a move. Inside SMC, weights therefore do not change (a kernel moves
    particles, it does not weigh them).
    """

    @abc.abstractmethod
    def move(
        self, key: PRNGKeyArray, target: Target, chain: Chain, steps: Int[Array, ""] | None = None
    ) -> Chain:
        """One move; with `steps` the target is the model's first so many (without `at_length`)."""

    def due(self, steps: Int[Array, ""]) -> Bool[Array, ""] | bool:
        """Is it applied in a filter after so many steps? A function of time, not of particles."""
        return True

    def __call__(self, key: PRNGKeyArray, target: Target, trace: Trace) -> Trace:
        """One move of a trace of the whole target."""
        active = spelled(trace.active, trace.log_probs)
        trace = eqx.tree_at(lambda t: t.active, trace, active, is_leaf=lambda x: x is trace.active)
        return self.move(key, target, Chain(trace, None, jnp.zeros(())), None).trace


class Repeat(Kernel):
    """`kernel` applied `times` times (0 is allowed and does nothing)."""

    kernel: Kernel
    times: int = eqx.field(static=True)

    def __check_init__(self):
        if self.times < 0:
            raise ValueError(f"Repeat needs a number of times of at least 0, got {self.times}")

    def move(self, key, target, chain, steps=None):
        """See `Kernel.move`."""

        def once(chain, i):
            new = self.kernel.move(jax.random.fold_in(key, i), target, chain, steps)
            return new, new.acceptance

        chain, rates = jax.lax.scan(once, chain, jnp.arange(self.times))
        return chain.rated(jnp.mean(rates) if self.times else jnp.zeros(()))
