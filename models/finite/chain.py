"""Finite chain: marginal, MAP, marginal MAP and all between, by one recursion with entropy weights.

The value of a chain with log weight L(z) and entropy weights w_t is

    max over laws q of  E_q[L(z)] + sum_t w_t H_q(z_t | z_0..z_{t-1}):

with all w_t = 1 the log evidence, with 0 the largest log weight. Lazaro-Gredilla, Ku, Murphy and
George (2024), "What type of inference is planning?", section 3; forward-backward over a semiring:
Goodman (1999), "Semiring parsing"; in parallel: Sarkka and Garcia-Fernandez (2021), "Temporal
parallelization of Bayesian smoothers", section IV.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from ...ppl.state_space import AtLength, Keep
from ._log_space import TableLike, check_shape, draw
from .hmm import HiddenMarkovModel
from .markov_lm import MarkovLM
from .semiring import Tempered, as_weight, tempered_sum

KEEP = Keep()


class FiniteChain(eqx.Module):
    """Log weight log_first[z_0] + sum_t log_steps[t, z_t, z_{t+1}] over paths of T values 0..K-1.

    Nats, unnormalized, -inf allowed. `weights` of the methods is one entropy weight >= 0, or one
    for each of the T variables; they may be traced. Where no path is possible the value is -inf
    (its gradient zero), marginals NaN, paths -1.

    | inference | call |
    |---|---|
    | log evidence | `log_value(1.0)` |
    | maximum a posteriori | `log_value(0.0)`, path `sample(key, 0.0)` |
    | marginal MAP of some variables | `eliminate(kept).log_value(0.0)` |
    | posterior draw | `sample(key, 1.0)` |
    | variables that are chosen (0) among others that happen (1), in time order | `log_value(w)` |
    """

    log_first: Float[Array, "K"]
    log_steps: Float[Array, "steps K K"]

    def __init__(self, log_first: TableLike, log_steps: TableLike) -> None:
        """Take `[K]` and `[T-1, K, K]` log weights (nats); ValueError on wrong shapes."""
        first = jnp.asarray(log_first, dtype=float)
        steps = jnp.asarray(log_steps, dtype=float)
        if first.ndim != 1:
            raise ValueError(f"log_first must be [K], but its shape is {first.shape}.")
        k = first.shape[0]
        check_shape("log_steps", steps, (*steps.shape[:1], k, k), f"log_first with {k} values")
        self.log_first, self.log_steps = first, steps

    @staticmethod
    def of_hmm(hmm: HiddenMarkovModel, ys: Int[Array, "T"]) -> "FiniteChain":
        """The states of a hidden Markov model given its data: log p(z, y)."""
        likelihood = hmm._log_likelihood(ys)
        steps = hmm.log_transition[None] + likelihood[1:, None, :]
        return FiniteChain(hmm.log_initial + likelihood[0], steps)

    @staticmethod
    def of_lm(
        lm: MarkovLM, log_potential: Float[Array, "T V V"], at_length: AtLength = KEEP
    ) -> "FiniteChain":
        """The texts of a Markov language model under potentials; after `eos` follows `eos`.

        Paths are texts of T tokens, padded by `eos` where `MarkovLM` pads by 0.
        """
        is_eos = lm._is_eos()
        steps = lm._steps(log_potential)
        stay = jnp.where(is_eos, 0.0, -jnp.inf)
        later = jnp.where(is_eos[None, :, None], stay[None, None, :], steps[1:])
        unfinished = at_length.log_weight(jnp.asarray(False))
        ending = jnp.where(is_eos, 0.0, unfinished)
        first = steps[0, lm.eos]
        if later.shape[0] == 0:
            return FiniteChain(first + ending, later)
        return FiniteChain(first, later.at[-1].add(ending[None, :]))

    @property
    def length(self) -> int:
        """T, the number of variables."""
        return self.log_steps.shape[0] + 1

    def log_weight(self, path: Int[Array, "T"]) -> Float[Array, ""]:
        """Log weight of one path, nats."""
        steps = self.log_steps[jnp.arange(self.length - 1), path[:-1], path[1:]]
        return self.log_first[path[0]] + jnp.sum(steps)

    def log_future(self, weights: ArrayLike = 1.0, parallel: bool = False) -> Float[Array, "T K"]:
        """Entry [t, k]: value of what follows z_t = k; row T-1 is zero.

        `parallel` takes O(log T) rounds of O(K^3) work instead of T of O(K^2); one weight only.
        """
        weights = as_weight(weights)
        last = jnp.zeros_like(self.log_first)
        if parallel and self.length > 1:
            if weights.ndim:
                raise ValueError(
                    "in parallel all variables share one entropy weight: give a scalar, or "
                    "parallel=False"
                )
            ring = Tempered(weights)
            rows = ring.add(ring.future(self.log_steps), axis=-1)
            return jnp.concatenate([rows, last[None]])

        def step(after, inputs):
            log_step, weight = inputs
            row = tempered_sum(log_step + after[None, :], weight, axis=1)
            return row, row

        later = self._each(weights)[1:]
        _, rows = jax.lax.scan(step, last, (self.log_steps, later), reverse=True)
        return jnp.concatenate([rows, last[None]])

    def log_past(self, weight: ArrayLike = 1.0, parallel: bool = False) -> Float[Array, "T K"]:
        """Entry [t, k]: value of all ways to z_t = k; one entropy weight. See `log_future`."""
        ring = Tempered(as_weight(weight))
        first = self.log_first[None]
        if parallel and self.length > 1:
            through = ring.add(self.log_first[None, :, None] + ring.past(self.log_steps), axis=1)
            return jnp.concatenate([first, through])

        def step(before, log_step):
            row = ring.add(before[:, None] + log_step, axis=0)
            return row, row

        _, rows = jax.lax.scan(step, self.log_first, self.log_steps)
        return jnp.concatenate([first, rows])

    def log_value(self, weights: ArrayLike = 1.0, parallel: bool = False) -> Float[Array, ""]:
        """The value: log evidence at weight 1, log of the largest weight at 0.

        Its gradients are exact: by `log_first` and `log_steps` the optimal law's marginals, by a
        weight the entropy it multiplies.
        """
        weights = as_weight(weights)
        future = self.log_future(weights, parallel)
        return tempered_sum(self.log_first + future[0], self._each(weights)[0], axis=0)

    def marginals(self, weights: ArrayLike = 1.0, parallel: bool = False) -> Float[Array, "T K"]:
        """Entry [t, k]: probability of z_t = k under the optimal law: the posterior at weight 1.

        At weight 0 it is a law on the best paths.
        """
        first, pairs = self._laws(weights, parallel)
        return jnp.concatenate([first[None], jnp.sum(pairs, axis=1)])

    def pairwise(
        self, weights: ArrayLike = 1.0, parallel: bool = False
    ) -> Float[Array, "steps K K"]:
        """Entry [t, i, j]: probability of z_t = i, z_{t+1} = j under the optimal law."""
        return self._laws(weights, parallel)[1]

    def entropies(self, weights: ArrayLike = 1.0) -> Float[Array, "T"]:
        """H(z_t | z_0..z_{t-1}) of the optimal law, nats; their sum is its entropy."""
        weights = self._each(as_weight(weights))
        return jax.grad(lambda w: self.log_value(w))(weights)

    def sample(self, key: PRNGKeyArray, weights: ArrayLike = 1.0) -> Int[Array, "T"]:
        """Draw a path from the optimal law: exact posterior draw at weight 1, best path at 0.

        At weight 0 ties go to the lowest value.
        """
        weights = as_weight(weights)
        each, future = self._each(weights), self.log_future(weights)

        def choose(key, scores, weight):
            cold = jnp.argmax(scores).astype(jnp.int32)
            possible = scores[cold] > -jnp.inf
            scaled = (scores - jnp.where(possible, scores[cold], 0.0)) / jnp.where(
                weight > 0, weight, 1.0
            )
            warm = draw(key, scaled).astype(jnp.int32)
            return jnp.where(possible, jnp.where(weight > 0, warm, cold), -1)

        def step(before, inputs):
            key, log_step, after, weight = inputs
            value = choose(key, log_step[before] + after, weight)
            return value, value

        keys = jax.random.split(key, self.length)
        first = choose(keys[0], self.log_first + future[0], each[0])
        inputs = (keys[1:], self.log_steps, future[1:], each[1:])
        _, rest = jax.lax.scan(step, first, inputs)
        return jnp.where(first < 0, -1, jnp.concatenate([first[None], rest]))

    def eliminate(self, kept: Sequence[int], weight: ArrayLike = 1.0) -> "FiniteChain":
        """The chain of the kept variables, the others summed out (with entropy weight `weight`).

        Marginal MAP is then `.log_value(0.0)`: the others' entropy given the kept counts, that of
        the kept does not. Eliminating first the ones and then the others does not commute.
        """
        at = np.asarray(sorted(set(kept)), int)
        if not len(at) or at[0] < 0 or at[-1] >= self.length or len(at) != len(list(kept)):
            raise ValueError(
                f"kept must be different variables among 0..{self.length - 1}, at least one; got "
                f"{list(kept)}"
            )
        ring = Tempered(as_weight(weight))

        def forward(before, log_step):
            return ring.add(before[:, None] + log_step, axis=0), None

        first, _ = jax.lax.scan(forward, self.log_first, self.log_steps[: at[0]])

        def backward(after, log_step):
            return ring.add(log_step + after[None, :], axis=1), None

        last = jnp.zeros_like(self.log_first)
        last, _ = jax.lax.scan(backward, last, self.log_steps[at[-1] :], reverse=True)
        if len(at) == 1:
            return FiniteChain(first + last, self.log_steps[:0])
        # Segments between neighbours, padded to one length by steps that change nothing.
        gaps = np.diff(at)
        index = at[:-1, None] + np.arange(gaps.max())
        inside = np.arange(gaps.max()) < gaps[:, None]
        k = self.log_first.shape[0]
        nothing = jnp.where(jnp.eye(k, dtype=bool), 0.0, -jnp.inf)
        steps = self.log_steps[np.where(inside, index, 0)]
        steps = jnp.where(inside[:, :, None, None], steps, nothing[None, None])

        def through(segments, log_step):
            return ring.product(segments, log_step), None

        segments, _ = jax.lax.scan(through, steps[:, 0], jnp.swapaxes(steps, 0, 1)[1:])
        return FiniteChain(first, segments.at[-1].add(last[None, :]))

    def _each(self, weights: Float[Array, "..."]) -> Float[Array, "T"]:
        if weights.ndim and weights.shape != (self.length,):
            raise ValueError(
                f"weights must be one number or [{self.length}], got shape {weights.shape}"
            )
        return jnp.broadcast_to(weights, (self.length,)).astype(self.log_first.dtype)

    def _laws(self, weights, parallel):
        """The optimal law's first marginal and pairs: the gradient of the value (envelope)."""

        def value(tables):
            return FiniteChain(*tables).log_value(weights, parallel)

        best, laws = jax.value_and_grad(value)((self.log_first, self.log_steps))
        return jax.tree.map(lambda law: jnp.where(best == -jnp.inf, jnp.nan, law), laws)
