"""Regular constraints as tables on the device, with exact "can finish within k tokens" weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, UInt

from ...ppl.potential import Potential, Remaining
from .tables import END, ENDING, FAR, START, Tables, joint, need_rows

_LARGEST = 1 << 27


class Automaton(Potential):
    """Texts that a deterministic automaton over tokens accepts; weight 1, all others 0.

    Law: `log_complete` is 0 (nats) in an accepting state, else -inf. `log_prefix` is 0 if, and
    only if, some continuation is accepted within the remaining symbols, of which the end is one.
    So guided draws never lead a particle into a dead end, at `max_tokens` neither, and no particle
    that could finish is lost.

    Tables: `classes` [V], the class of each token; `transitions` [S, C], the next state;
    `distance` [S], the fewest tokens from a state to acceptance. So that `log_next` is one copy of
    a row, `rows` [R, V] has the symbols needed from each token on, once for all states that agree
    on them (`row` [S]); above 128 MiB there is none, and values of classes are gathered instead.
    Tables are padded and leaves: an automaton of like size compiles nothing. The carried state is
    one int32.

    In a product of automata each counts for itself: where both can finish but not together, the
    guided law is empty or a particle runs into a dead end, and its weight becomes zero. The product
    of the weights is right all the same. `intersect` is one automaton that knows it beforehand.
    """

    classes: Int[Array, "V"]
    transitions: Int[Array, "S C"]
    distance: Int[Array, "S"]
    row: Int[Array, "S"]
    rows: UInt[Array, "R V"] | None

    @staticmethod
    def of(tables: Tables) -> "Automaton":
        """The automaton of host tables."""
        row, rows = need_rows(tables, _LARGEST)
        classes, transitions, distance, row = (jnp.asarray(x, jnp.int32) for x in (*tables, row))
        rows = None if rows is None else jnp.asarray(rows)
        return Automaton(classes, transitions, distance, row, rows)

    @property
    def fewest_tokens(self) -> int:
        """Fewest tokens of an accepted text, the end not counted (outside `jit`)."""
        return int(np.asarray(self.distance)[START])

    def start(self, length):
        """See `Potential.start`. ValueError if no accepted text ends within `length` symbols.

        Under `jit`, where the tables are not known, the run says it by its status.
        """
        if not isinstance(self.distance, Tracer) and self.fewest_tokens >= length:
            raise ValueError(
                f"the shortest text that the constraint allows has {self.fewest_tokens} tokens and "
                f"the end, but there is room for {length} in all: give max_tokens of at least "
                f"{self.fewest_tokens + 1}"
            )
        return jnp.full((), START, jnp.int32)

    def advance(self, state, symbol, context=None):
        """See `Potential.advance`."""
        return self.transitions[state, self.classes[symbol]]

    def log_prefix(self, state, remaining: Remaining = None):
        """0 if an accepted text can still be finished, else -inf."""
        return _log(self._can_finish(self.distance[state], remaining))

    def log_complete(self, state, context=None):
        """0 in an accepting state, else -inf."""
        return _log(self.distance[state] == 0)

    def log_next(self, state, remaining: Remaining = None):
        """0 for the tokens after which an accepted text can still be finished, else -inf."""
        if self.rows is None:
            later = None if remaining is None else remaining - 1
            allowed = self._can_finish(self.distance[self.transitions[state]], later)
            return self.spread(_log(allowed))
        never = jnp.iinfo(self.rows.dtype).max
        most = never - 1 if remaining is None else jnp.clip(remaining, 0, never - 1)
        need = self.rows.at[self.row[state]].get(mode="promise_in_bounds")
        return _log(need <= jnp.asarray(most, self.rows.dtype))

    def intersect(self, other: "Automaton") -> "Automaton":
        """The automaton of the texts that both accept (outside `jit`).

        On the same vocabulary. Unlike in a product of the two, "can finish within k tokens" is of
        both together. Raises ValueError if no text is accepted by both.
        """
        ends = [np.flatnonzero(np.asarray(a.classes) == ENDING) for a in (self, other)]
        if self.classes.shape != other.classes.shape or ends[0] != ends[1]:
            raise ValueError(
                f"automata on {self.classes.shape[0]} and {other.classes.shape[0]} tokens with "
                f"ends {ends[0]} and {ends[1]}: put both patterns on one vocabulary"
            )
        both = joint(*(Tables(*map(np.asarray, (a.classes, a.transitions, a.distance)))
                       for a in (self, other)))  # fmt: skip
        if both.distance[START] == FAR:
            raise ValueError("no text of these tokens is accepted by both automata: drop one")
        return Automaton.of(both)

    def backward(
        self, log_token_weights: Float[Array, "V"], length: int
    ) -> Float[Array, "length_and_one S"]:
        """Log beta_k(s), k = 0, ..., length: all that can follow state s within k symbols.

        beta_k(s) is the sum, over accepted completions of at most k symbols (the end is one), of
        the product of the weights of their tokens, the end's included: with the probabilities of
        independent tokens, that of finishing. Recursion: beta_k(s) = sum_a w(a) beta_{k-1}(s a),
        by classes of tokens, in log space.
        """
        return _backward(self, log_token_weights, length)

    def spread(self, of_class: Float[Array, "C"]) -> Float[Array, "V"]:
        """A value of each class as a value of each token."""

        def gather(values):
            return values.at[self.classes].get(mode="promise_in_bounds")

        def nothing(values):
            return jnp.zeros(self.classes.shape, values.dtype)

        # Always true. XLA would repeat a gather in all that reads it, but not a conditional.
        return jax.lax.cond(self.distance[END] < 0, gather, nothing, of_class)

    def _can_finish(self, distance: Array, remaining: Remaining) -> Bool[Array, "..."]:
        """Are so many tokens and the end within the symbols that remain?"""
        if remaining is None:
            return distance < FAR
        return distance < remaining


def _log(allowed: Bool[Array, "..."]) -> Array:
    return jnp.where(allowed, 0.0, -jnp.inf)


@functools.partial(jax.jit, static_argnames="length")
def _backward(automaton: Automaton, log_token_weights: Array, length: int) -> Array:
    top = jax.ops.segment_max(log_token_weights, automaton.classes, automaton.transitions.shape[1])
    known = jnp.where(jnp.isfinite(top), top, 0.0)
    shares = jnp.exp(log_token_weights - known[automaton.classes])
    total = jax.ops.segment_sum(shares, automaton.classes, automaton.transitions.shape[1])
    log_class = jnp.log(total) + known
    over = jnp.arange(automaton.distance.shape[0]) == END
    last = jnp.where(over, 0.0, jnp.full_like(known, -jnp.inf, shape=over.shape))

    def step(later, _):
        now = jax.nn.logsumexp(log_class[None] + later[automaton.transitions], axis=1)
        now = jnp.where(over, 0.0, now)
        return now, now

    rows = jax.lax.scan(step, last, length=length)[1]
    return jnp.concatenate([last[None], rows])
