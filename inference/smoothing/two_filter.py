"""Two-filter smoothing: a filter and an information filter from the end meet.

Briers, Doucet and Maskell (2010), "Smoothing algorithms for state-space models", section 2.5.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ...ppl.code import Code
from ...ppl.compiled import compiled
from ...ppl.partial import as_given, overlay, total
from ..population import get_row
from .failure import RUN, Failure
from .forward import Forward
from .marginals import Marginals, normalized


def two_filter(forward: Forward, information: Forward, log_prior: Callable) -> Marginals:
    """Smoothing marginals, O(N^2) a step, from two independent runs.

    `information` is a run on a StateSpace of the same length T whose step s has the sites of the
    model's step t = T - 1 - s, and after it the marginal target
    prior_t(x_t) p(y_t, y_t+1, .. | x_t); `log_prior(t, choices)`, nats, is the log density prior_t,
    which makes that a law. The state must be a function of its step's own choices, and no
    observation or factor depend on the state before. The smoothed states are those of
    `information` in the order of time; move 0, the filter's init, is left as the filter has it.
    """
    return _two_filter(forward, information, Code(log_prior))


@compiled
def _two_filter(forward: Forward, information: Forward, log_prior: Code) -> Marginals:
    length, driver = forward.length, forward.driver
    failure = Failure.of(forward.status)
    failure = failure.then(information.status.code != 0, RUN, information.status.step)
    fixed = driver.fk.split(driver.target.constraints)[1]

    def one(t):
        s = length - 1 - t
        states = jax.tree.map(lambda x: x[t], forward.states)
        chosen = jax.tree.map(lambda x: x[s], information.store)

        def to(choices):
            given = overlay(get_row(fixed, t), as_given(choices))

            def from_(before):
                out = driver.fk.model.advance(None, given, before, t, driver.target.args)
                return total(out.log_probs), out.retval

            scores, reached = jax.vmap(from_)(states)
            return scores, jax.tree.map(lambda x: x[0], reached)

        scores, reached = jax.vmap(to)(chosen)
        ahead = jax.nn.logsumexp(scores + forward.log_weights[t][None], axis=1)
        prior = jax.vmap(lambda c: log_prior(t, c))(chosen)
        log_weights = information.log_weights[s + 1] + ahead - prior
        dead = jnp.isneginf(ahead) | jnp.isneginf(information.log_weights[s + 1])
        return reached, normalized(jnp.where(dead, -jnp.inf, log_weights))

    reached, log_weights = jax.lax.map(one, jnp.arange(length, dtype=jnp.int32))
    start = jax.tree.map(lambda x: x[:1], forward.states)
    states = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), start, reached)
    first = normalized(forward.log_weights[0])
    return Marginals(states, jnp.concatenate([first[None], log_weights]), failure)
