"""Finite decision process: planning as inference, one recursion with two entropy weights.

States are as they happen, actions as they are chosen. With entropy weights w_a of actions and w_x
of states the value is

    max over q of  E_q[log weight] + sum_t w_a H(a_t | x_t) + w_x H(x_{t+1} | x_t, a_t).

Lazaro-Gredilla, Ku, Murphy and George (2024), "What type of inference is planning?", table 1:
their types differ in these weights only.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from ._log_space import TableLike
from .chain import FiniteChain
from .semiring import as_weight, tempered_sum


class DecisionChain(eqx.Module):
    """Log weight log_first[x_0] + sum_t log_steps[t, x_t, a_t, x_{t+1}]; K states, A actions.

    `log_steps` is log p(x' | x, a) + reward(x, a, x') (and a log prior of actions, if they have
    one), nats; -inf allowed.

    | inference | action | state |
    |---|---|---|
    | marginal (control as inference) | 1 | 1 |
    | planning: log of the best policy's E[exp(sum of rewards)] | 0 | 1 |
    | maximum a posteriori path | 0 | 0 |

    Values fall in that order. Planning is exact for exponential utility; rewards times a small
    factor, the value divided by it, approach the expected reward. Marginal MAP of the actions (one
    plan for all outcomes, between planning and MAP) does not decompose over time; for a given plan
    `given(actions).log_value(1.0)` is its value. Actions impossible everywhere have value -inf.
    """

    log_first: Float[Array, "K"]
    log_steps: Float[Array, "T K A K"]

    def __init__(self, log_first: TableLike, log_steps: TableLike) -> None:
        """Take `[K]` and `[T, K, A, K]` log weights (nats); ValueError on wrong shapes."""
        first = jnp.asarray(log_first, dtype=float)
        steps = jnp.asarray(log_steps, dtype=float)
        k = first.shape[-1:]
        if first.ndim != 1 or steps.ndim != 4 or steps.shape[1:2] != k or steps.shape[3:] != k:
            raise ValueError(
                f"log_first must be [K] and log_steps [T, K, A, K], but their shapes are "
                f"{first.shape} and {steps.shape}."
            )
        self.log_first, self.log_steps = first, steps

    def log_future(
        self, action: ArrayLike = 0.0, state: ArrayLike = 1.0
    ) -> tuple[Float[Array, "moves K"], Float[Array, "T K A"]]:
        """Values of states, and of states and actions, at every time (V and Q)."""
        action, state = (as_weight(w).astype(self.log_first.dtype) for w in (action, state))

        def step(after, log_step):
            q = tempered_sum(log_step + after[None, None, :], state, axis=2)
            v = tempered_sum(q, action, axis=1)
            return v, (v, q)

        last = jnp.zeros_like(self.log_first)
        _, (values, q) = jax.lax.scan(step, last, self.log_steps, reverse=True)
        return jnp.concatenate([values, last[None]]), q

    def log_value(self, action: ArrayLike = 0.0, state: ArrayLike = 1.0) -> Float[Array, ""]:
        """The value, nats; by default that of the best policy."""
        values, _ = self.log_future(action, state)
        weight = as_weight(state).astype(self.log_first.dtype)
        return tempered_sum(self.log_first + values[0], weight, axis=0)

    def policy(self, action: ArrayLike = 0.0, state: ArrayLike = 1.0) -> Float[Array, "T K A"]:
        """The optimal q(a_t | x_t), at weight 0 the first best action; NaN if none is possible."""
        _, q = self.log_future(action, state)
        weight = as_weight(action).astype(q.dtype)
        top = jnp.max(q, axis=2, keepdims=True)
        possible = top > -jnp.inf
        scaled = (q - jnp.where(possible, top, 0.0)) / jnp.where(weight > 0, weight, 1.0)
        best = jax.nn.one_hot(jnp.argmax(q, axis=2), q.shape[2], dtype=q.dtype)
        law = jnp.where(weight > 0, jax.nn.softmax(scaled, axis=2), best)
        return jnp.where(possible, law, jnp.nan)

    def given(self, actions: Int[Array, "T"]) -> FiniteChain:
        """The chain of states under one plan, whatever happens."""
        steps = jax.vmap(lambda step, a: step[:, a, :])(self.log_steps, actions)
        return FiniteChain(self.log_first, steps)

    def under(self, policy: Float[Array, "T K A"]) -> FiniteChain:
        """The chain of states with the actions drawn from a policy and summed out."""
        log_policy = jnp.log(policy)[:, :, :, None]
        one = jnp.ones((), self.log_first.dtype)
        return FiniteChain(self.log_first, tempered_sum(self.log_steps + log_policy, one, axis=2))

    def sample(
        self, key: PRNGKeyArray, action: ArrayLike = 0.0, state: ArrayLike = 1.0
    ) -> tuple[Int[Array, "moves"], Int[Array, "T"]]:
        """States and actions from the optimal law; at weights 0 the best path; -1 if impossible."""
        joint = self._joint()
        a = self.log_steps.shape[2]
        steps = self.log_steps.shape[0]
        weights = jnp.zeros(2 * steps + 1).at[0::2].set(as_weight(state))
        path = joint.sample(key, weights.at[1::2].set(as_weight(action)))
        actions = jnp.where(path[1::2] < 0, -1, path[1::2] % a)
        return path[0::2], actions

    def _joint(self) -> FiniteChain:
        """The chain x_0, (x_0, a_0), x_1, (x_1, a_1), ..., every node with K A values."""
        steps, k, a, _ = self.log_steps.shape
        size = k * a
        choose = jnp.full((k, k, a), -jnp.inf).at[jnp.arange(k), jnp.arange(k)].set(0.0)
        choose = jnp.full((size, size), -jnp.inf).at[:k].set(choose.reshape(k, size))
        move = jnp.full((steps, size, size), -jnp.inf)
        move = move.at[:, :, :k].set(self.log_steps.reshape(steps, size, k))
        pairs = jnp.stack([jnp.broadcast_to(choose, move.shape), move], axis=1)
        first = jnp.full(size, -jnp.inf).at[:k].set(self.log_first)
        return FiniteChain(first, pairs.reshape(2 * steps, size, size))
