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


class Walk(eqx.Module):
    """Moves of a kernel on one target one after the other, and what they share.

    What a move needs of the one before it (coordinates, a gradient) is the walk's state, so that it
    is found once, not at each move; a trace is made only of states that are kept.
    """

    @abc.abstractmethod
    def step(self, key: PRNGKeyArray, state: PyTree) -> tuple[PyTree, Float[Array, ""]]:
        """One move: the new state, and the acceptance rate."""

    @abc.abstractmethod
    def chain(self, state: PyTree) -> Chain:
        """The chain that stands at a state."""


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

    def walk(
        self, key: PRNGKeyArray, target: Target, chain: Chain, steps: Int[Array, ""] | None = None
    ) -> tuple[Walk, PyTree]:
        """Many moves from a chain, arguments as of `move`: a walk, and the state it begins at.

        Law: `step` leaves the target invariant, as `move` does. By default it is `move`.
        """
        return _Moves(self, target, steps), chain

    def due(self, steps: Int[Array, ""]) -> Bool[Array, ""] | bool:
        """Is it applied in a filter after so many steps? A function of time, not of particles."""
        return True

    def __call__(self, key: PRNGKeyArray, target: Target, trace: Trace) -> Trace:
        """One move of a trace of the whole target."""
        active = spelled(trace.active, trace.log_probs)
        trace = eqx.tree_at(lambda t: t.active, trace, active, is_leaf=lambda x: x is trace.active)
        return self.move(key, target, Chain(trace, None, jnp.zeros(())), None).trace


class _Moves(Walk):
    """A walk whose states are chains."""

    kernel: Kernel
    target: Target
    steps: Int[Array, ""] | None

    def step(self, key, state):
        new = self.kernel.move(key, self.target, state, self.steps)
        return new, new.acceptance

    def chain(self, state):
        return state


class Repeat(Kernel):
    """`kernel` applied `times` times (0 is allowed and does nothing)."""

    kernel: Kernel
    times: int = eqx.field(static=True)

    def __check_init__(self):
        if self.times < 0:
            raise ValueError(f"Repeat needs a number of times of at least 0, got {self.times}")

    def move(self, key, target, chain, steps=None):
        """See `Kernel.move`."""
        if not self.times:
            return chain.rated(jnp.zeros_like(chain.acceptance))
        key_walk, key_step = jax.random.split(key)
        walk, state = self.walk(key_walk, target, chain, steps)
        state, rate = walk.step(key_step, state)
        return walk.chain(state).rated(rate)

    def walk(self, key, target, chain, steps=None):
        """See `Kernel.walk`."""
        walk, state = self.kernel.walk(key, target, chain, steps)
        return _Repeated(walk, self.times), state


class _Repeated(Walk):
    """So many steps of a walk as one; acceptance is their mean."""

    walk: Walk
    times: int = eqx.field(static=True)

    def step(self, key, state):
        def once(state, i):
            return self.walk.step(jax.random.fold_in(key, i), state)

        state, rates = jax.lax.scan(once, state, jnp.arange(self.times))
        return state, jnp.mean(rates) if self.times else jnp.zeros(())

    def chain(self, state):
        return self.walk.chain(state)
