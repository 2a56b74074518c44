"""Backward simulation by rejection: no sum over particles when the step's density is bounded.

Douc, Garivier, Moulines and Olsson (2011), "Sequential Monte Carlo smoothing for general state
space hidden Markov models", Algorithm 1; a cap on the attempts and then an exact draw: Taghavi,
Lindsten, Svensson and Schon (2013), "Adaptive stopping for fast particle smoothing".
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...ppl.combinators.branches import any_member
from ..population import get_row
from .backward import Backward, Exact
from .failure import BOUND, MEMORY, Failure
from .futures import follow


class Rejection(Backward):
    """Propose by weight, accept by density over its bound; exact after `attempts` failures.

    `log_bound` (nats; one number, or one a step) is at least the log density of a step given the
    state before: its choices', observes and factors. The state must be a function of the step's own
    choices. Both are checked on what is looked at; a failure says so.
    """

    log_bound: Float[Array, "..."] = eqx.field(converter=lambda x: jnp.asarray(x, dtype=float))
    attempts: int = eqx.field(static=True, default=16)

    def __check_init__(self):
        if self.attempts < 1:
            raise ValueError(f"Rejection needs at least one attempt, got {self.attempts}")

    def draw(self, key, moment):
        """See `Backward.draw`."""
        key_exact, key_tries = jax.random.split(key)
        driver, t = moment.forward.driver, moment.t
        bound = self.log_bound if self.log_bound.ndim == 0 else self.log_bound[t]
        chosen = get_row(moment.future, t)
        parent = jax.tree.map(lambda x: x[moment.parent], moment.states)
        true = follow(driver, parent, t, chosen)

        def attempt(carry):
            k, _, _, failure = carry
            key_draw, key_accept = jax.random.split(jax.random.fold_in(key_tries, k))
            index = jax.random.categorical(key_draw, moment.log_weights).astype(jnp.int32)
            before = jax.tree.map(lambda x: x[index], moment.states)
            made = follow(driver, before, t, chosen)
            log_density = jnp.where(_same(made.active, true.active), made.log_density, -jnp.inf)
            possible = ~jnp.isneginf(log_density)
            failure = failure.then(possible & ~_same(made.state, moment.after), MEMORY, t)
            # Rounding of a bound that is attained is no failure.
            excess = log_density - bound.astype(log_density.dtype)
            failure = failure.then(excess > 1e-5 * (1 + jnp.abs(bound)), BOUND, t)
            log_u = jnp.log1p(-jax.random.uniform(key_accept, dtype=excess.dtype))
            return k + 1, log_u < excess, index, failure

        def going(carry):
            k, accepted, _, _ = carry
            return (k < self.attempts) & ~accepted

        start = (jnp.int32(0), jnp.zeros((), bool), moment.parent, Failure.none())
        _, accepted, index, failure = jax.lax.while_loop(going, attempt, start)

        def exactly(index):
            drawn, _ = Exact().draw(key_exact, moment)
            return jnp.where(accepted, index, drawn)

        index = jax.lax.cond(any_member(~accepted), exactly, lambda i: i, index)
        return index, failure


def _same(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return jnp.all(jnp.stack([jnp.ones((), bool), *(jnp.all(x == y) for x, y in pairs)]))
