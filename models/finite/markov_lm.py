"""Markov language model with an end-of-text token: exact answers by dynamic programming.

The backward pass is the optimal twist psi* of Zhao et al., "Probabilistic inference in language
models via twisted sequential Monte Carlo" (2024), section 3.1, in closed form for potentials of
neighbouring tokens.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ...ppl.distributions import Token
from ...ppl.program import bind
from ...ppl.state_space import AtLength, Keep, StateSpace
from ._log_space import (
    TableLike,
    check_indices,
    check_rows,
    check_shape,
    draw,
    is_concrete,
    log_sum_exp,
    lookup,
    normalize,
)

KEEP = Keep()


class MarkovLM(eqx.Module):
    """Texts x_0 ~ initial, x_t ~ transition[x_{t-1}], up to and including the first `eos`.

    Before x_0 the previous token counts as `eos` (row `eos` of `log_transition` is not used). The
    methods answer for T = max_tokens tokens and the law

        p(x) exp(sum over t < length(x) of log_potential[t, x_{t-1}, x_t]) [ended, if Reject()],

    unnormalized, where `log_potential` (`[T, V, V]`, nats, -inf allowed) is read at row `eos` for
    t = 0. `Keep()` takes the first T tokens of an unfinished text as they are; with `Reject()` it
    has weight zero. Where nothing is possible log evidence is -inf, probabilities NaN, tokens -1.
    """

    log_initial: Float[Array, "V"]
    log_transition: Float[Array, "V V"]
    eos: Int[Array, ""]

    def __init__(
        self, log_initial: TableLike, log_transition: TableLike, eos: int | Int[Array, ""]
    ) -> None:
        """Take `[V]` and `[V, V]` log tables (nats); ValueError on wrong shapes, sums or eos."""
        initial = jnp.asarray(log_initial, dtype=float)
        transition = jnp.asarray(log_transition, dtype=float)
        if initial.ndim != 1:
            raise ValueError(f"log_initial must be [V], but its shape is {initial.shape}.")
        v = initial.shape[0]
        check_shape("log_transition", transition, (v, v), f"log_initial with {v} tokens")
        eos = jnp.asarray(eos, dtype=jnp.int32)
        check_indices("eos", eos, v)
        check_rows("log_initial", initial)
        ignored = np.arange(v) == np.asarray(eos) if is_concrete(eos) else np.ones(v, dtype=bool)
        check_rows("log_transition", transition, ignored)
        self.log_initial, self.log_transition, self.eos = initial, transition, eos

    @property
    def log_table(self) -> Float[Array, "V V"]:
        """Row x_{t-1}, column x_t; row `eos` is the law of the first token."""
        return jnp.where(self._is_eos()[:, None], self.log_initial[None, :], self.log_transition)

    def no_potential(self, max_tokens: int) -> Float[Array, "T V V"]:
        """Return the log potential that is zero everywhere, for the law of the model itself."""
        return jnp.zeros((max_tokens, *self.log_transition.shape))

    def log_weight(
        self,
        tokens: Int[Array, "T"],
        log_potential: Float[Array, "T V V"],
        at_length: AtLength = KEEP,
    ) -> Float[Array, ""]:
        """Log of the unnormalized law of one text; tokens after the first `eos` are not read."""
        check_indices("tokens", tokens, self.log_initial.shape[0])
        tokens = tokens.astype(jnp.int32)
        running, ended = self._running(tokens)
        previous = jnp.concatenate([self.eos[None], tokens[:-1]])
        steps = self._steps(log_potential)[jnp.arange(tokens.shape[0]), previous, tokens]
        total = jnp.sum(jnp.where(running, steps, 0.0))
        return jnp.where(ended, total, total + _unfinished(at_length))

    def log_evidence(
        self,
        log_potential: Float[Array, "T V V"],
        at_length: AtLength = KEEP,
    ) -> Float[Array, ""]:
        """Log of the normalizing constant of the law, nats."""
        return self.log_future(log_potential, at_length)[0, self.eos]

    def log_future(
        self,
        log_potential: Float[Array, "T V V"],
        at_length: AtLength = KEEP,
    ) -> Float[Array, "T+1 V"]:
        """Entry [t, v]: log expected weight of tokens t..T-1 when t are made and the last is v.

        The optimal twist. Column `eos` is 0 (the text has ended), save for row 0, where it is
        the log evidence and the other entries are -inf.
        """
        is_eos = self._is_eos()

        def step(log_beta, log_step):
            rows = log_sum_exp(log_step + log_beta[None, :], axis=1)
            return jnp.where(is_eos, 0.0, rows), rows

        last = jnp.where(is_eos, 0.0, jnp.zeros_like(self.log_initial) + _unfinished(at_length))
        _, rows = jax.lax.scan(step, last, self._steps(log_potential), reverse=True)
        first = jnp.where(is_eos, rows[0], -jnp.inf)
        later = jnp.where(is_eos[None, :], 0.0, rows[1:])
        return jnp.concatenate([first[None], later, last[None]])

    def log_past(self, log_potential: Float[Array, "T V V"]) -> Float[Array, "T+1 V"]:
        """Entry [t, v]: log weight of all ways to make t tokens of which v is the last.

        In column `eos` that is ending with token t-1 exactly; row 0 is the start: 0 at `eos`.
        """
        is_eos = self._is_eos()

        def step(log_alpha, inputs):
            log_step, first = inputs
            running = jnp.where(is_eos & ~first, -jnp.inf, log_alpha)
            log_alpha = log_sum_exp(running[:, None] + log_step, axis=0)
            return log_alpha, log_alpha

        start = jnp.where(is_eos, 0.0, jnp.full_like(self.log_initial, -jnp.inf))
        first = jnp.arange(log_potential.shape[0]) == 0
        _, rows = jax.lax.scan(step, start, (self._steps(log_potential), first))
        return jnp.concatenate([start[None], rows])

    def length_law(
        self,
        log_potential: Float[Array, "T V V"],
        at_length: AtLength = KEEP,
    ) -> Float[Array, "T+1"]:
        """Entry t < T: probability that the text has t+1 tokens, `eos` included; T: unfinished."""
        past = self.log_past(log_potential)
        ended = past[1:, self.eos]
        running = log_sum_exp(jnp.where(self._is_eos(), -jnp.inf, past[-1]), axis=0)
        unfinished = running + _unfinished(at_length)
        return normalize(jnp.concatenate([ended, unfinished[None]]), axis=0)

    def prob_ended(self, max_tokens: int) -> Float[Array, ""]:
        """Probability under the model itself that the text ends within `max_tokens` tokens."""
        return jnp.sum(self.length_law(self.no_potential(max_tokens))[:-1])

    def pairwise(
        self,
        log_potential: Float[Array, "T V V"],
        at_length: AtLength = KEEP,
    ) -> Float[Array, "T V V"]:
        """Entry [t, u, v]: probability that token t is made, x_{t-1} = u and x_t = v."""
        past = self.log_past(log_potential)[:-1]
        past = jnp.where(self._is_eos()[None, :], past.at[1:].set(-jnp.inf), past)
        future = self.log_future(log_potential, at_length)
        joint = past[:, :, None] + self._steps(log_potential) + future[1:, None, :]
        log_z = future[0, self.eos]
        finite = jnp.where(log_z == -jnp.inf, 0.0, log_z)
        return jnp.where(log_z == -jnp.inf, jnp.nan, jnp.exp(joint - finite))

    def marginals(
        self,
        log_potential: Float[Array, "T V V"],
        at_length: AtLength = KEEP,
    ) -> Float[Array, "T V"]:
        """Entry [t, v]: probability that token t is made and is v; rows sum to P(length > t)."""
        return jnp.sum(self.pairwise(log_potential, at_length), axis=1)

    def posterior_sample(
        self,
        key: PRNGKeyArray,
        log_potential: Float[Array, "T V V"],
        at_length: AtLength = KEEP,
    ) -> Int[Array, "T"]:
        """Draw one exact text; 0 after the first `eos`."""
        future = self.log_future(log_potential, at_length)
        steps = self._steps(log_potential) + future[1:, None, :]

        def step(state, inputs):
            previous, ended = state
            key, log_step = inputs
            token = draw(key, log_step[previous]).astype(jnp.int32)
            return (token, ended | (token == self.eos)), jnp.where(ended, 0, token)

        keys = jax.random.split(key, steps.shape[0])
        start = (self.eos, jnp.asarray(False))
        _, tokens = jax.lax.scan(step, start, (keys, steps))
        return jnp.where(future[0, self.eos] == -jnp.inf, -1, tokens)

    def after(self, token: int | Int[Array, ""]) -> "MarkovLM":
        """Return the model of what follows a prompt that ends in `token`; after `eos`, itself."""
        return eqx.tree_at(lambda lm: lm.log_initial, self, lookup(self.log_table, token))

    def state_space(
        self,
        log_potential: Float[Array, "T V V"],
        at_length: AtLength = KEEP,
    ) -> StateSpace:
        """Return the same law as a program of T steps, without args.

        Step t samples site "token" and adds the factor "potential". The state is
        `(previous, ended)`.
        """
        self._steps(log_potential)
        model = StateSpace(_init, _step, log_potential.shape[0], _done, at_length)
        return bind(model, self, log_potential)

    def _is_eos(self) -> Array:
        return jnp.arange(self.log_initial.shape[0], dtype=jnp.int32) == self.eos

    def _steps(self, log_potential):
        shape = (log_potential.shape[0], *self.log_transition.shape)
        if shape[0] == 0 or log_potential.shape != shape:
            raise ValueError(
                f"log_potential must be [T, V, V] = {('T', *shape[1:])} with T >= 1, but its shape "
                f"is {log_potential.shape}."
            )
        return self.log_table[None] + log_potential

    def _running(self, tokens):
        """Which tokens belong to the text, and whether it ends within them."""
        ends = tokens == self.eos
        count = jnp.cumsum(ends, dtype=jnp.int32)
        return (count == 0) | (ends & (count == 1)), count[-1] > 0


def _init(ctx, lm, log_potential):
    return lm.eos, jnp.asarray(False)


def _step(ctx, state, t, lm, log_potential):
    previous, _ = state
    token = ctx.sample("token", Token(lm.log_table[previous]))
    ctx.factor("potential", log_potential[t, previous, token])
    return token, token == lm.eos


def _done(state):
    return state[1]


def _unfinished(at_length: AtLength) -> Float[Array, ""]:
    return at_length.log_weight(jnp.asarray(False))
