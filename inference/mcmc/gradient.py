"""Hamiltonian Monte Carlo, NUTS, MALA and the random walk, by BlackJAX, on continuous sites.

Duane et al. 1987; Hoffman and Gelman 2014 (with the multinomial draw of Betancourt 2017); Roberts
and Tweedie 1996. Integrators and acceptance are BlackJAX's (Cabezas et al. 2024).
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ...ppl.distributions import third_party
from ...ppl.selection import Selection
from .kernel import Chain, Kernel, Walk
from .transition import at, settle, written
from .unconstrained import View


def _number(x: Any) -> Array:
    return jnp.asarray(x, dtype=float)


class Continuous(Kernel):
    """A move of the continuous sites of a selection in unconstrained coordinates.

    Discrete sites, constrained ones and those not selected are held fixed, and so is which sites
    happen. Coordinates are those of NumPyro's `biject_to(support)`, its log Jacobian in the
    density, as one vector in the order of the sorted names.

    Errors: an empty selection, a discrete site that is named, an estimated density.
    """

    selection: eqx.AbstractVar[Selection]

    @abc.abstractmethod
    def begin(self, view: View) -> Any:
        """What a move needs of the one before, with the `position` [d] in it, at the view's own."""

    @abc.abstractmethod
    def propose(self, key: PRNGKeyArray, view: View, state: Any) -> tuple[Any, Array]:
        """That after a move, accepted or not, and the acceptance rate."""

    def move(self, key, target, chain, steps=None):
        """See `Kernel.move`."""
        key_walk, key_step = jax.random.split(key)
        walk, state = self.walk(key_walk, target, chain, steps)
        state, rate = walk.step(key_step, state)
        return walk.chain(state).rated(rate)

    def walk(self, key, target, chain, steps=None):
        """See `Kernel.walk`: density and gradient are carried from move to move."""
        old, who = written(chain.trace), type(self).__name__
        view = View.of(who, key, target, old, self.selection, steps)
        return _Positions(self, view, chain), third_party(self.begin)(view)


class _Positions(Walk):
    """A walk in the coordinates of a view, which is made once."""

    kernel: Continuous
    view: View
    start: Chain

    def step(self, key, state):
        new, rate = third_party(self.kernel.propose)(key, self.view, state)
        good = jnp.all(jnp.isfinite(new.position))
        state = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state)
        return state, rate.astype(self.start.acceptance.dtype)

    def chain(self, state):
        view = self.view
        trace, end = at(view.target, third_party(view.choices)(state.position), view.steps)
        # Coordinates and back is not the identity in floating point: what did not move stays.
        moved = jnp.any(state.position != view.position)
        log_p = trace.score + trace.log_weight
        return settle(moved & ~jnp.isneginf(log_p), self.start, trace, end)


class HMC(Continuous):
    """`HMC(selection, step_size, n_leapfrog=10, inverse_mass=1.0)`: Hamiltonian Monte Carlo.

    `inverse_mass` is a scalar, a diagonal [d] or a matrix [d, d]: about the covariance of the
    coordinates. `warmup` finds it and the step size.
    """

    selection: Selection
    step_size: Float[Array, ""] = eqx.field(converter=_number)
    n_leapfrog: int = eqx.field(static=True, default=10)
    inverse_mass: Float[Array, "..."] = eqx.field(converter=_number, default=1.0)

    def begin(self, view):
        """See `Continuous.begin`."""
        import blackjax

        return blackjax.hmc.init(view.position, view.log_density)

    def propose(self, key, view, state):
        """See `Continuous.propose`."""
        import blackjax

        mass = _mass(self.inverse_mass, view)
        new, info = blackjax.hmc.build_kernel()(
            key, state, view.log_density, self.step_size, mass, self.n_leapfrog
        )
        return new, info.acceptance_rate


class NUTS(Continuous):
    """`NUTS(selection, step_size, inverse_mass=1.0)`: the no-U-turn sampler.

    `inverse_mass` as in `HMC`; trajectories have up to 2^max_doublings - 1 steps.
    """

    selection: Selection
    step_size: Float[Array, ""] = eqx.field(converter=_number)
    inverse_mass: Float[Array, "..."] = eqx.field(converter=_number, default=1.0)
    max_doublings: int = eqx.field(static=True, default=10)

    def begin(self, view):
        """See `Continuous.begin`."""
        import blackjax

        return blackjax.nuts.init(view.position, view.log_density)

    def propose(self, key, view, state):
        """See `Continuous.propose`."""
        import blackjax

        mass = _mass(self.inverse_mass, view)
        new, info = blackjax.nuts.build_kernel()(
            key, state, view.log_density, self.step_size, mass, self.max_doublings
        )
        return new, info.acceptance_rate


class MALA(Continuous):
    """`MALA(selection, step_size)`: the Metropolis-adjusted Langevin algorithm.

    A step is step_size * gradient + sqrt(2 step_size) * noise.
    """

    selection: Selection
    step_size: Float[Array, ""] = eqx.field(converter=_number)

    def begin(self, view):
        """See `Continuous.begin`."""
        import blackjax

        return blackjax.mala.init(view.position, view.log_density)

    def propose(self, key, view, state):
        """See `Continuous.propose`."""
        import blackjax

        new, info = blackjax.mala.build_kernel()(key, state, view.log_density, self.step_size)
        return new, info.acceptance_rate


class RandomWalk(Continuous):
    """`RandomWalk(selection, scale)`: a normal step, its scale a scalar or [d]; no gradient."""

    selection: Selection
    scale: Float[Array, "..."] = eqx.field(converter=_number)

    def begin(self, view):
        """See `Continuous.begin`."""
        from blackjax.mcmc import random_walk

        return random_walk.init(view.position, view.log_density)

    def propose(self, key, view, state):
        """See `Continuous.propose`."""
        from blackjax.mcmc import random_walk

        def step(key, position):
            return self.scale * jax.random.normal(key, position.shape, position.dtype)

        new, info = random_walk.build_additive_step()(key, state, view.log_density, step)
        return new, info.acceptance_rate


def _mass(inverse_mass: Array, view: View) -> Array:
    d = view.position.size
    if inverse_mass.ndim == 0:
        return jnp.full(d, inverse_mass)
    if inverse_mass.shape not in ((d,), (d, d)):
        raise ValueError(
            f"inverse_mass has shape {inverse_mass.shape}, but the selection has {d} coordinates: "
            f"give a scalar, [{d}] or [{d}, {d}]"
        )
    return inverse_mass
