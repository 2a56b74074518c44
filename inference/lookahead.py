"""Look-ahead: resample by what rollouts of the next steps earn.

Lin, Chen and Liu (2013), "Lookahead strategies for sequential Monte Carlo" (pilot look-ahead).
The published one-step form, Look-ahead Modulation of Entropic Particle Filtering, reuses the
drawn successor; see `Lookahead`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..ppl.twist import AbstractTwist


class Lookahead(AbstractTwist):
    """A twist by simulation: the mean over `rollouts` futures of the weight of `steps` steps.

    The rollouts are the filter's own moves (its proposal, its potentials) and are thrown away:
    particles are resampled by weight times estimate and divided by it, so the target is kept, for
    any number of rollouts. Costs steps * rollouts moves a particle and step. Because a particle
    whose rollouts all die may yet live, a share `defensive` of the resampling goes by weight alone.

    To reuse the drawn successor of a one-step look-ahead instead is to resample (state, successor)
    by the weight after the successor: that is the filter without look-ahead, whose next
    resampling it performs one move early; to reuse the first of `steps` successors is
    `Lookahead(steps - 1)`.
    """

    steps: int = eqx.field(static=True, default=1)
    rollouts: int = eqx.field(static=True, default=1)
    defensive: Float[Array, ""] = eqx.field(
        default=0.1, converter=lambda x: jnp.asarray(x, dtype=float)
    )

    def __check_init__(self):
        if self.steps < 1 or self.rollouts < 1:
            raise ValueError(
                f"Lookahead needs at least one step and one rollout, got steps={self.steps}, "
                f"rollouts={self.rollouts}; twist=None looks at nothing"
            )

    def log_psi_of(self, key, fk, state, t):
        """See `AbstractTwist.log_psi_of`."""
        _, given = fk.split(fk.target.constraints)

        def roll(key):
            def one(carry, ahead):
                state, total = carry
                s = t + ahead
                row = jax.tree.map(lambda x: x[jnp.minimum(s, fk.model.length - 1)], given)
                moved = fk.step(jax.random.fold_in(key, ahead), row, state, s)
                inside = s < fk.model.length
                gain = jnp.where(inside, moved.log_potential, jnp.zeros_like(total))
                return (moved.state, total + gain), None

            start = (state, jnp.zeros((), jnp.result_type(float)))
            ahead = jnp.arange(self.steps, dtype=jnp.int32)
            (last, total), _ = jax.lax.scan(one, start, ahead)
            end = jnp.where(t + self.steps >= fk.model.length, fk.end(last), 0.0)
            return total + end

        values = jax.vmap(roll)(jax.random.split(key, self.rollouts))
        return jax.nn.logsumexp(values) - jnp.log(jnp.asarray(self.rollouts, values.dtype))

    def mixed(self, log_weights, log_priority):
        """See `AbstractTwist.mixed`."""
        share = self.defensive.astype(log_weights.dtype)
        kept = jnp.log(share) + jax.nn.log_softmax(log_weights)
        ahead = jnp.log1p(-share) + jax.nn.log_softmax(log_priority)
        # No rollout of any particle lived: nothing is known of the future.
        ahead = jnp.where(jnp.all(jnp.isneginf(log_priority)), -jnp.inf, ahead)
        return jnp.where(jnp.isneginf(log_weights), -jnp.inf, jnp.logaddexp(kept, ahead))
