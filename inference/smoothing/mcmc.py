"""Backward simulation by a few Metropolis-Hastings moves: O(1) a step and path.

Bunch and Godsill (2013), "Improved particle approximations to the joint smoothing distribution
using Markov chain Monte Carlo"; started at the genealogy, Dau and Chopin (2023), "On backward
smoothing algorithms", section 3.2.
"""

import equinox as eqx
import jax
import jax.numpy as jnp

from .backward import Backward
from .failure import Failure


class MCMC(Backward):
    """`moves` independent Metropolis-Hastings moves from the true parent, proposed by weight.

    Exact for every number of moves (0 is `Genealogy`); a few suffice against path degeneracy.
    """

    moves: int = eqx.field(static=True, default=2)

    def __check_init__(self):
        if self.moves < 0:
            raise ValueError(f"MCMC needs a number of moves of at least 0, got {self.moves}")

    def draw(self, key, moment):
        """See `Backward.draw`."""
        key_propose, key_accept = jax.random.split(key)
        drawn = jax.random.categorical(key_propose, moment.log_weights, shape=(self.moves,))
        index = jnp.concatenate([moment.parent[None], drawn.astype(jnp.int32)])
        states = jax.tree.map(lambda x: x[index], moment.states)
        wanted = ~jnp.isneginf(moment.log_weights[index])
        ratios = moment.log_ratios(states, 0, wanted)
        ratios = jnp.where(wanted, ratios, -jnp.inf)
        # Uniform on (0, 1]: what has density zero is never accepted.
        log_u = jnp.log1p(-jax.random.uniform(key_accept, (self.moves + 1,), ratios.dtype))

        def move(at, k):
            return jnp.where(log_u[k] < ratios[k] - ratios[at], k, at), None

        at, _ = jax.lax.scan(move, jnp.int32(0), jnp.arange(1, self.moves + 1, dtype=jnp.int32))
        return index[at], Failure.none()
