"""Twists: what a particle filter expects of the future, to decide which particles to keep.

Guarniero, Johansen and Lee (2017), "The iterated auxiliary particle filter"; Pitt and Shephard
(1999) for one step; Whiteley and Lee (2014), "Twisted particle filters".
"""

import abc
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .code import Code
from .errors import ProgramError

if TYPE_CHECKING:
    from .feynman_kac import FeynmanKac


class AbstractTwist(eqx.Module):
    """An expectation of the future weight of one particle, known or estimated.

    Law: the particles are resampled by weight times psi and their weights divided by it, so that
    the target is kept for every psi that is positive where the future weight can be.
    """

    @abc.abstractmethod
    def log_psi_of(
        self, key: PRNGKeyArray, fk: "FeynmanKac", state: PyTree, t: Int[Array, ""]
    ) -> Float[Array, ""]:
        """Log psi of a state that has not finished, before step t; the key is for estimates."""

    def mixed(
        self, log_weights: Float[Array, "n"], log_priority: Float[Array, "n"]
    ) -> Float[Array, "n"]:
        """The priorities that the population is resampled by; as they are by default."""
        return log_priority


class Twist(AbstractTwist):
    """`Twist(log_psi)`: log_psi(state, t, *args) is the log expected future weight, nats.

    `state` is the one that step t receives (t = 0 after init) and args are the model's. With the
    true expectation and the model's own twisted transitions every particle ends with the same
    weight; with any other psi > 0 the target is kept and only the variance differs. A psi of zero
    (-inf) says that the future weight is zero: such a particle is not selected. Finished states
    and those after the last step have psi = 1, whatever the function says. With psi of the next
    step's evidence this is the auxiliary particle filter.
    """

    log_psi: Code
    bound: tuple

    def __init__(self, log_psi: Any, bound: tuple = ()):
        self.log_psi, self.bound = Code(log_psi), bound

    def bind(self, *args: PyTree) -> "Twist":
        """The twist with leading args fixed (a network, a table); see `ppl.bind`."""
        return Twist(self.log_psi, self.bound + args)

    def log_psi_of(self, key, fk, state, t):
        """See `AbstractTwist.log_psi_of`."""
        value = jnp.asarray(self.log_psi(state, t, *self.bound, *fk.model.bound, *fk.target.args))
        if value.shape or not jnp.issubdtype(value.dtype, jnp.floating):
            raise ProgramError(
                f"log_psi(state, t, *args) must be one float (nats), got {value.dtype}"
                f"{list(value.shape)}: sum over what it has axes for"
            )
        return value
