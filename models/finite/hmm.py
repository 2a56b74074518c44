"""Hidden Markov model with finite states and symbols: exact evidence, smoothing and samples.

Rabiner, "A tutorial on hidden Markov models" (1989): forward (19)-(21), backward (23)-(25),
Viterbi (32)-(35), pair marginals (37). Samples by forward filtering and backward sampling (Scott
2002).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ...ppl.distributions import Token
from ...ppl.program import bind
from ...ppl.state_space import StateSpace
from ._log_space import (
    TableLike,
    check_indices,
    check_rows,
    check_shape,
    draw,
    log_sum_exp,
    lookup,
    normalize,
)


class HiddenMarkovModel(eqx.Module):
    """z_0 ~ initial, z_t ~ transition[z_{t-1}], y_t ~ emission[z_t], for t = 0..T-1.

    Tables hold log probabilities (nats), normalized over the last axis; -inf is a zero.
    Where the data are impossible `log_evidence` is -inf, probabilities are NaN and paths are -1.
    A symbol outside 0..M-1 is an error (NaN under jit).
    """

    log_initial: Float[Array, "K"]
    log_transition: Float[Array, "K K"]
    log_emission: Float[Array, "K M"]

    def __init__(
        self, log_initial: TableLike, log_transition: TableLike, log_emission: TableLike
    ) -> None:
        """Take `[K]`, `[K, K]` and `[K, M]` log tables; ValueError if shapes or sums are wrong."""
        initial = jnp.asarray(log_initial, dtype=float)
        transition = jnp.asarray(log_transition, dtype=float)
        emission = jnp.asarray(log_emission, dtype=float)
        if initial.ndim != 1 or emission.ndim != 2:
            raise ValueError(
                f"log_initial must be [K] and log_emission [K, M], but their shapes are "
                f"{initial.shape} and {emission.shape}."
            )
        k = initial.shape[0]
        check_shape("log_transition", transition, (k, k), f"log_initial with {k} states")
        check_shape("log_emission", emission, (k, emission.shape[1]), f"{k} states")
        check_rows("log_initial", initial)
        check_rows("log_transition", transition)
        check_rows("log_emission", emission)
        self.log_initial, self.log_transition, self.log_emission = initial, transition, emission

    def log_joint(self, zs: Int[Array, "T"], ys: Int[Array, "T"]) -> Float[Array, ""]:
        """Log p(z_0..z_{T-1}, y_0..y_{T-1}) in nats."""
        check_indices("zs", zs, self.log_initial.shape[0])
        emitted = jnp.take_along_axis(self._log_likelihood(ys), zs[:, None], axis=1)
        moves = lookup(self.log_transition, zs[:-1])
        moved = jnp.take_along_axis(moves, zs[1:, None], axis=1)
        return lookup(self.log_initial, zs[0]) + jnp.sum(moved) + jnp.sum(emitted)

    def log_evidence(self, ys: Int[Array, "T"]) -> Float[Array, ""]:
        """Log p(y_0..y_{T-1}) in nats, by the forward algorithm."""
        return log_sum_exp(self.log_forward(ys)[-1], axis=0)

    def log_forward(self, ys: Int[Array, "T"]) -> Float[Array, "T K"]:
        """Entry [t, k] is log p(z_t = k, y_0..y_t)."""
        likelihood = self._log_likelihood(ys)

        def step(log_alpha, log_like):
            predicted = log_sum_exp(log_alpha[:, None] + self.log_transition, axis=0)
            return predicted + log_like, predicted + log_like

        first = self.log_initial + likelihood[0]
        _, rest = jax.lax.scan(step, first, likelihood[1:])
        return jnp.concatenate([first[None], rest])

    def log_future(self, ys: Int[Array, "T"]) -> Float[Array, "T K"]:
        """Entry [t, k] is log p(y_{t+1}..y_{T-1} | z_t = k): the optimal twist after step t."""
        likelihood = self._log_likelihood(ys)

        def step(log_beta, log_like):
            log_beta = log_sum_exp(self.log_transition + (log_like + log_beta)[None, :], axis=1)
            return log_beta, log_beta

        last = jnp.zeros_like(self.log_initial)
        _, rest = jax.lax.scan(step, last, likelihood[1:], reverse=True)
        return jnp.concatenate([rest, last[None]])

    def filtered(self, ys: Int[Array, "T"]) -> Float[Array, "T K"]:
        """Entry [t, k] is P(z_t = k | y_0..y_t)."""
        return normalize(self.log_forward(ys), axis=1)

    def smoothed(self, ys: Int[Array, "T"]) -> Float[Array, "T K"]:
        """Entry [t, k] is P(z_t = k | y_0..y_{T-1})."""
        return normalize(self.log_forward(ys) + self.log_future(ys), axis=1)

    def pairwise(self, ys: Int[Array, "T"]) -> Float[Array, "T-1 K K"]:
        """Entry [t, i, j] is P(z_t = i, z_{t+1} = j | y_0..y_{T-1})."""
        ahead = (self._log_likelihood(ys) + self.log_future(ys))[1:]
        alpha = self.log_forward(ys)[:-1]
        joint = alpha[:, :, None] + self.log_transition[None] + ahead[:, None, :]
        return normalize(joint, axis=(1, 2))

    def viterbi(self, ys: Int[Array, "T"]) -> Int[Array, "T"]:
        """Return the maximum a posteriori path argmax p(z | y); ties go to the lower state."""
        likelihood = self._log_likelihood(ys)

        def forward(log_best, log_like):
            scores = log_best[:, None] + self.log_transition
            return jnp.max(scores, axis=0) + log_like, jnp.argmax(scores, axis=0)

        def backward(state, came_from):
            return came_from[state], state

        log_best, pointers = jax.lax.scan(forward, self.log_initial + likelihood[0], likelihood[1:])
        last = jnp.argmax(log_best)
        first, rest = jax.lax.scan(backward, last, pointers, reverse=True)
        path = jnp.concatenate([first[None], rest])
        return jnp.where(jnp.max(log_best) == -jnp.inf, -1, path)

    def posterior_sample(self, key: PRNGKeyArray, ys: Int[Array, "T"]) -> Int[Array, "T"]:
        """Draw one exact sample of p(z_0..z_{T-1} | y), by backward sampling."""
        log_alpha = self.log_forward(ys)
        keys = jax.random.split(key, ys.shape[0])

        def backward(after, inputs):
            key, row = inputs
            state = draw(key, row + self.log_transition[:, after])
            return state, state

        last = draw(keys[-1], log_alpha[-1])
        _, rest = jax.lax.scan(backward, last, (keys[:-1], log_alpha[:-1]), reverse=True)
        path = jnp.concatenate([rest, last[None]])
        return jnp.where(last < 0, -1, path)

    def state_space(self, length: int) -> StateSpace:
        """Return the same model as a program for `length` symbols, with args `(ys,)`.

        Step t samples site "z" (from the initial law at t = 0) and observes `ys[t]` as "y".
        """

        def init(ctx, hmm, ys):
            check_shape("ys", ys, (length,), f"a model of {length} steps")
            return jnp.zeros((), dtype=jnp.int32)

        return bind(StateSpace(init, _step, length), self)

    def _log_likelihood(self, ys: Int[Array, "T"]) -> Float[Array, "T K"]:
        if ys.shape[0] == 0:
            raise ValueError("ys is empty; instead of no data give at least one symbol.")
        check_indices("ys", ys, self.log_emission.shape[1])
        return lookup(self.log_emission.T, ys)


def _step(ctx, previous, t, hmm, ys):
    row = jnp.where(t == 0, hmm.log_initial, hmm.log_transition[previous])
    z = ctx.sample("z", Token(row))
    ctx.observe("y", Token(hmm.log_emission[z]), ys[t])
    return z
