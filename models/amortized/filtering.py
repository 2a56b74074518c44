"""Filtering by repeated application of a network that takes mixtures to mixtures.

Whittle et al. (2025), section 4.3: the posterior of one step, moved by the dynamics, is the prior
of the next. What the network loses in a step is measured by importance weights of its own draws.
"""

from collections.abc import Callable, Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from .mixtures import Mixture


class Filtered(eqx.Module):
    """Mixtures at all times, leading axis T.

    - `predicted[t]`: given data before t; `posterior[t]`: given data up to t; `next`: for time T.
    - `outside[t]`: did the network meet a prior or data that it was not trained for?
    - `update_error[t]`: estimate of KL(exact update of predicted[t] || posterior[t]), nats, and
      `ess[t]` the effective fraction of the draws that it rests on; NaN without a likelihood.
    - `predict_error[t]`: error of the step from t to t + 1, nats, as the dynamics says.
    """

    predicted: Mixture
    posterior: Mixture
    next: Mixture
    outside: Bool[Array, "*batch T"]
    update_error: Float[Array, "*batch T"]
    ess: Float[Array, "*batch T"]
    predict_error: Float[Array, "*batch T"]


def filtering(
    key: PRNGKeyArray,
    net: Callable,
    prior: Mixture,
    data: Mapping[str, Array],
    dynamics: Callable,
    *,
    observed: Mapping[str, Bool[Array, "T n"]] | None = None,
    log_likelihood: Callable[[Float[Array, " d"], PyTree], Float[Array, ""]] | None = None,
    draws: int = 256,
) -> Filtered:
    """Filter data [T, n, ...] from a prior of the state at time 0, in one scan.

    Approximate: errors of the steps add up as far as the dynamics does not forget them. To go on
    with another prior from a time on, filter up to it and call again with that prior.

    Args:
        key: of draws.
        net: a trained `DistributionTransformer` on mixtures; anything from (prior, data, observed)
            to a `Belief`.
        prior: with the number of components that is kept.
        data: from sources to observations, leading axes time and number.
        dynamics: `LinearDynamics(...)` (exact), `SampledDynamics(...)`, or any function
            `(key, mixture) -> (mixture, error)`.
        observed: which observations count.
        log_likelihood: `(x, data at one time) -> nats`, to measure the network's error.
        draws: for that.
    """

    def step(carry, inputs):
        t, prior = carry
        rows, masks = inputs
        key_error, key_move = jax.random.split(jax.random.fold_in(key, t))
        answer = net(prior, rows, masks)
        error, ess = jnp.full((2,), jnp.nan, prior.means.dtype)
        if (seen := log_likelihood) is not None:
            error, ess = error_of(
                key_error, answer.posterior, lambda x: prior.log_prob(x) + seen(x, rows), draws
            )
        after, moved = dynamics(key_move, answer.posterior)
        out = (prior, answer.posterior, answer.outside, error, ess, moved)
        return (t + 1, after), out

    masks = None if observed is None else dict(observed)
    (_, last), out = jax.lax.scan(step, (jnp.int32(0), prior), (dict(data), masks))
    before, after, outside, error, ess, moved = out
    return Filtered(before, after, last, outside, error, ess, moved)


def error_of(
    key: PRNGKeyArray,
    q: Mixture,
    log_joint: Callable[[Float[Array, " d"]], Float[Array, ""]],
    draws: int,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """KL(p || q), nats, for p of the unnormalised density given, and the effective fraction.

    Both from importance weights of draws of q: consistent, and too small where q misses a mode.
    """
    x = q.sample(key, (draws,))
    log_w = jax.vmap(log_joint)(x) - jax.vmap(q.log_prob)(x)
    log_w = log_w - jax.nn.logsumexp(log_w) + jnp.log(jnp.asarray(draws, log_w.dtype))
    w = jnp.exp(log_w) / draws
    error = jnp.sum(jnp.where(w > 0, w * jnp.where(w > 0, log_w, 0.0), 0.0))
    return error, 1.0 / (draws * jnp.sum(w**2))
