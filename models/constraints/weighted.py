"""Automata with a look-ahead: prefixes weighed by what independent tokens would make of them.

The backward weights of an automaton under token weights are the exact twist (Zhao et al. 2024,
"Probabilistic inference in language models via twisted sequential Monte Carlo", section 3.1) of a
model of independent tokens, and an approximation of a language model's.
"""

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from ...ppl.log_weights import gain
from ...ppl.potential import Potential, Remaining
from .automaton import Automaton


class Weighted(Potential):
    """An automaton whose prefixes weigh the probability that independent tokens finish them.

    Law: complete texts weigh what they do in `automaton`; a prefix weighs beta_k(s), k the symbols
    that remain (`Automaton.backward`). So the target is the same, and only the way there is another
    one. If the model's tokens are independent with these weights, every particle ends with the same
    weight and the log evidence is exact, log beta; for another model it is unbiased.

    `log_backward` [length + 1, S], nats. Without a limit (`Keep`) the last row is taken for all
    prefixes, and then unfinished texts do count with it.
    """

    automaton: Automaton
    log_backward: Float[Array, "length_and_one S"]

    @staticmethod
    def of(automaton: Automaton, log_token_weights: Float[Array, "V"], length: int) -> "Weighted":
        """With the weights of tokens (nats), for texts of at most `length` symbols.

        Each token that a model may write in an accepted text needs a weight above zero: the prefix
        weights would forbid it. Raises ValueError where one is -inf, +inf or NaN.
        """
        if jnp.shape(log_token_weights) != automaton.classes.shape:
            raise ValueError(
                f"there are weights of shape {jnp.shape(log_token_weights)} for "
                f"{automaton.classes.shape[0]} tokens: give one a token"
            )
        if not isinstance(log_token_weights, Tracer) and not isinstance(automaton.classes, Tracer):
            used = (np.asarray(automaton.transitions) > 0).any(axis=0)
            used = np.take(used, np.asarray(automaton.classes))
            wrong = np.flatnonzero(used & ~np.isfinite(np.asarray(log_token_weights)))
            if wrong.size:
                raise ValueError(
                    f"token {wrong[0]} is allowed by the automaton but its log weight is "
                    f"{float(log_token_weights[wrong[0]])}: give every token a finite one, for "
                    "example by mixing in a little of the uniform distribution"
                )
        return Weighted(automaton, automaton.backward(log_token_weights, length))

    def start(self, length):
        """See `Automaton.start`. ValueError if the backward weights are of a shorter length."""
        if length > self.log_backward.shape[0] - 1:
            raise ValueError(
                f"the backward weights are of texts of at most {self.log_backward.shape[0] - 1} "
                f"symbols, but there is room for {length}: build them with length={length}"
            )
        return self.automaton.start(length)

    def advance(self, state, symbol, context=None):
        """See `Potential.advance`."""
        return self.automaton.advance(state, symbol)

    def log_prefix(self, state, remaining: Remaining = None):
        """Log of the weight of all completions within the remaining symbols."""
        return self.log_backward[self._row(remaining), state]

    def log_complete(self, state, context=None):
        """0 in an accepting state, else -inf."""
        return self.automaton.log_complete(state).astype(self.log_backward.dtype)

    def log_next(self, state, remaining: Remaining = None):
        """What each token does to `log_prefix`."""
        now = self.log_prefix(state, remaining)
        row = self._row(None if remaining is None else remaining - 1)
        later = self.log_backward[row, self.automaton.transitions[state]]
        return self.automaton.spread(gain(later, now))

    def _row(self, remaining: Remaining) -> Array:
        last = self.log_backward.shape[0] - 1
        if remaining is None:
            return jnp.asarray(last, jnp.int32)
        return jnp.clip(remaining, 0, last).astype(jnp.int32)
