"""Losses by consistency in time, for a twist of next values: soft Q-learning, path consistency.

Soft Q-learning for a twist is the "RL" loss of Zhao et al. (2024), "Probabilistic inference in
language models via twisted sequential Monte Carlo"; path consistency: Nachum et al. (2017),
"Bridging the gap between value and policy based reinforcement learning"; over all parts of a path
it is the sub-trajectory balance of Hu et al. (2024), "Amortizing intractable inference in large
language models", with lambda = 1.

With log psi(v) = Q and the state's twist V = log sum_v law(v) exp Q(v), the optimum has
Q_t(v_t) = log weight of step t + V_{t+1}, and V = 0 after the end. Any draws will do (off-policy),
where they reach; no loss of these needs posterior draws.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .twist import NextTwist
from .walks import Walks

FLOOR = -30.0
"""Log weights below this count as this, nats: a square has to be finite."""


def soft_q(
    twist: NextTwist, draws: Walks, target: NextTwist | None = None, floor: float = FLOOR
) -> Float[Array, ""]:
    """Mean squared difference of Q_t and log weight + V_{t+1}, the latter without gradient.

    Args:
        twist: what is learned.
        draws: sequences with the law of next values.
        target: what V is of (a slowly moving copy, say); the twist itself by default.
        floor: log weights below it count as it.
    """
    values = jax.lax.stop_gradient((target or twist).log_values(draws))
    after = jnp.concatenate([values[:, 1:], jnp.zeros_like(values[:, :1])], axis=1)
    goal = jnp.maximum(draws.log_gain + after, floor)
    error = twist.estimates(draws) - jnp.where(draws.active, goal, 0.0)
    return jnp.sum(error**2) / jnp.sum(draws.active).astype(error.dtype)


def path_consistency(twist: NextTwist, draws: Walks, floor: float = FLOOR) -> Float[Array, ""]:
    """Mean over sequences and i < j of (V_i + sum_{i <= t < j} (log q/p - log weight)_t - V_j)^2.

    q is the twist's proposal and p the model's law. The gradient passes through both ends.
    """
    values = twist.log_values(draws)
    gain = jnp.maximum(draws.log_gain, floor)
    step = jnp.where(draws.active, twist.estimates(draws) - values - gain, 0.0)
    none = jnp.zeros_like(step[:, :1])
    level = jnp.concatenate([values, none], 1) - jnp.concatenate([none, jnp.cumsum(step, 1)], 1)
    prefix = jnp.concatenate([jnp.ones_like(draws.active[:, :1]), draws.active], axis=1)
    count: Any = jnp.sum(prefix, axis=1).astype(level.dtype)
    mean = jnp.sum(jnp.where(prefix, level, 0.0), axis=1) / count
    spread = jnp.where(prefix, level - jnp.broadcast_to(mean[:, None], level.shape), 0.0)
    # The sum over pairs of squared differences is count times that of squared deviations.
    return jnp.mean(2 * jnp.sum(spread**2, axis=1) / jnp.maximum(count - 1, 1))
