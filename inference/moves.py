"""How the particles of one move are drawn: each by itself, or all from one set of points."""

import abc

import equinox as eqx
import jax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ..ppl.feynman_kac import FeynmanKac, Moved, Retained
from ..ppl.keys import particle_key
from ..ppl.partial import Given
from .resampling import Resampler

# Keys of a move beside those of its particles, which are `particle_key(key, i)`.
RESAMPLE, KERNEL, TWIST = 0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFFD


class Moves(eqx.Module):
    """The randomness of init, of a step, and of the resampling before it."""

    @abc.abstractmethod
    def init(
        self,
        fk: FeynmanKac,
        key: PRNGKeyArray,
        i: Int[Array, ""],
        given: Given,
        retained: Retained | None,
    ) -> Moved:
        """The first move of particle `i`; `key` is that of all."""

    @abc.abstractmethod
    def step(
        self,
        fk: FeynmanKac,
        key: PRNGKeyArray,
        i: Int[Array, ""],
        given: Given,
        state: PyTree,
        t: Int[Array, ""],
        retained: Retained | None,
    ) -> Moved:
        """Step t of particle `i`; `key` is that of all."""

    @abc.abstractmethod
    def ancestors(
        self,
        fk: FeynmanKac,
        key: PRNGKeyArray,
        resampler: Resampler,
        log_weights: Float[Array, " n"],
        states: PyTree,
    ) -> Int[Array, " n"]:
        """Whose state each particle has before a step; `key` is the step's."""

    def needed(self, resampler: Resampler, size: Float[Array, ""], n: int) -> Bool[Array, ""]:
        """Are ancestors drawn for n particles of this effective size?"""
        return resampler.needed_at(size, n)


class Independent(Moves):
    """Every particle by a key of its own, ancestors by the resampler."""

    def init(self, fk, key, i, given, retained):
        """See `Moves.init`."""
        return fk.init(particle_key(key, i), given, retained)

    def step(self, fk, key, i, given, state, t, retained):
        """See `Moves.step`."""
        return fk.step(particle_key(key, i), given, state, t, retained)

    def ancestors(self, fk, key, resampler, log_weights, states):
        """See `Moves.ancestors`."""
        return resampler.ancestors(jax.random.fold_in(key, RESAMPLE), log_weights)
