"""Several tokens as one move: what steps, calls and turns are made of.

A passage ends at a delimiter, at the end of the text or at its largest length. All particles write
their tokens at the same slots; one whose passage has ended waits, and the loop ends when all wait.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ...ppl.combinators.branches import any_member
from ...ppl.distributions import Token, draw
from ...ppl.errors import ProgramError, site_name
from ...ppl.generative import PLAIN, GenerativeFunction, Outcome, Request
from ...ppl.hot import Hot, map_cold
from ...ppl.partial import Given, as_value
from ...ppl.potential import Potential
from ...ppl.probe import FiniteSupport
from .protocol import LanguageModel, Prefix, State
from .writing import Text, constrained, corrected

SITE = "token"


class Passage(eqx.Module):
    """A passage: `tokens` [L], zeros after the first `count`; `ended` if the text ended with it.

    The end-of-text token is none of the `count` tokens.
    """

    tokens: Int[Array, "L"]
    count: Int[Array, ""]
    ended: Bool[Array, ""]


class Laws(eqx.Module):
    """What the tokens of passages are drawn from.

    `temperature` is the model's, one number or one a token of the passage; `drawn_at` the
    temperature to draw at instead, with its correction as a factor; `table` ends passages (see
    `delimiter_table`), `potential` weighs tokens.
    """

    lm: LanguageModel
    prefix: Prefix
    temperature: Float[Array, "..."]
    drawn_at: Float[Array, "..."] | None = None
    table: Int[Array, "Q V"] | None = None
    potential: Potential | None = None


class Loop(NamedTuple):
    """One particle in the loop over the tokens of a passage; at its end, what came of it."""

    state: State
    carried: PyTree
    last: Array
    progress: Array
    over: Array
    ended: Array
    tokens: Array
    log_probs: Array
    active: Array
    log_weight: Array

    @property
    def passage(self) -> Passage:
        """What was written."""
        count = jnp.sum(self.active, dtype=jnp.int32) - self.ended.astype(jnp.int32)
        written = jnp.arange(self.tokens.shape[0], dtype=jnp.int32) < count
        return Passage(jnp.where(written, self.tokens, 0), count, self.ended)


def write_passage(
    laws: Laws,
    key: PRNGKeyArray | None,
    given: Given,
    request: Request,
    length: int,
    state: State,
    carried: PyTree,
    slot: Int[Array, ""],
    last: Int[Array, ""],
    over: Bool[Array, ""],
    left: Int[Array, ""] | None = None,
) -> Loop:
    """Write up to `length` tokens from slot `slot` on; nothing where `over`.

    Law: tokens of `laws` until the passage ends. `left` is what potentials are told as `remaining`
    at the first token. A `while_loop`: for derivatives through a text use a `Generation`.
    """
    lm = laws.lm
    value, mask = _given(given, length, request)
    start = Loop(
        state, carried, last.astype(jnp.int32), jnp.int32(0), over, jnp.zeros((), bool),
        jnp.zeros(length, jnp.int32), jnp.zeros(length), jnp.zeros(length, bool), jnp.zeros(()),
    )  # fmt: skip

    def one(j, loop: Loop) -> Loop:
        active = ~loop.over
        remaining = None if left is None else left - j
        potential, logits = laws.potential, loop.state.logits
        law = Token(logits / _at(laws.temperature, j, logits))
        log_next = None if potential is None else potential.log_next(loop.carried, remaining)
        guided, favour = constrained(law, log_next)
        drawn = guided
        if laws.drawn_at is not None:
            hot = logits / _at(laws.drawn_at, j, logits)
            drawn = Token(hot if favour is None else hot + favour)
        if value is not None and mask is None:
            token = value[j]
        else:
            token = draw(drawn, jax.random.fold_in(key, j))  # pyright: ignore[reportArgumentType]
            token = token if value is None or mask is None else jnp.where(mask[j], value[j], token)
        token = token.astype(jnp.int32)
        log_prob, is_end = drawn.log_prob(token), token == lm.eos
        factor = jnp.zeros(())
        if laws.drawn_at is not None:
            possible = ~jnp.isneginf(log_prob)
            gain = jnp.where(possible, guided.log_prob(token) - log_prob, 0.0)
            factor = factor + gain.astype(factor.dtype)
        kept = loop.carried
        if potential is not None:
            text = Text(Hot(loop.state), loop.last, loop.ended, loop.carried)
            # What no host function is asked about: a text that has just ended, without its end.
            symbol = jnp.where(active, token, -1 if potential.waits else lm.eos)
            over = active & is_end
            moved, gain = potential.weigh(loop.carried, symbol, over, remaining, text)
            kept = _frozen(active, moved, loop.carried, potential.waits)
            gain = corrected(law, guided, favour, token, gain)
            factor = factor + gain.astype(factor.dtype)
        write = active & ~is_end
        progress, closed = loop.progress, jnp.zeros((), bool)
        if laws.table is not None:
            progress = jnp.where(active, laws.table[progress, token], progress)
            closed = progress == laws.table.shape[0] - 1
        return Loop(
            lm.advance(laws.prefix, loop.state, token, slot + j, write),
            kept,
            jnp.where(write, token, loop.last),
            progress,
            loop.over | is_end | closed,
            loop.ended | (active & is_end),
            loop.tokens.at[j].set(jnp.where(active, token, 0)),
            loop.log_probs.at[j].set(jnp.where(active, log_prob, 0.0).astype(float)),
            loop.active.at[j].set(active),
            loop.log_weight + jnp.where(active, factor, 0.0),
        )

    def going(carry):
        return (carry[0] < length) & any_member(~carry[1].over)

    def go(carry):
        return carry[0] + 1, one(*carry)

    return jax.lax.while_loop(going, go, (jnp.int32(0), start))[1]


def _at(temperature: Array, j: Array, logits: Array) -> Array:
    return (temperature[j] if temperature.ndim else temperature).astype(logits.dtype)


def _frozen(active: Array, new: PyTree, old: PyTree, hot_waits: bool) -> PyTree:
    """The new state where active; its hot part is selected too unless it has waited itself."""

    def pick(a, b):
        return jnp.where(active, a, b)

    return map_cold(pick, new, old) if hot_waits else jax.tree.map(pick, new, old)


def _given(given: Given, length: int, request: Request) -> tuple[Array | None, Array | None]:
    """The value [L] of the site and where it is given; no mask: everywhere."""
    where = site_name(request.where, SITE)
    unknown = sorted(set(given) - {SITE})
    if unknown:
        raise ProgramError(f"values were given for {unknown}, but a passage has the site {where}")
    if SITE not in given:
        if request.complete:
            raise ProgramError(
                f"no value for site {where}: assess needs every choice. Give it, or use generate, "
                "which draws what is missing."
            )
        return None, None
    node = as_value(given[SITE])
    if jnp.shape(node.value) != (length,) or not jnp.issubdtype(node.value.dtype, jnp.integer):
        raise ProgramError(
            f"the value for {where} is {node.value.dtype}{list(jnp.shape(node.value))}, but a "
            f"passage has {length} tokens: give that many ids (zeros where it is shorter)"
        )
    if node.mask is None:
        return node.value.astype(jnp.int32), None
    if request.complete:
        raise ProgramError(f"some values of site {where} are missing: assess needs every choice")
    return node.value.astype(jnp.int32), jnp.broadcast_to(node.mask, (length,))


def outcome(loop: Loop, laws: Laws, request: Request, retval: PyTree) -> Outcome:
    """The loop's choices as those of a generative function; the weight is the loop's."""
    support = None
    if isinstance(request.probe, FiniteSupport):
        n, v = loop.tokens.shape[0], laws.lm.vocab_size
        support = {SITE: jnp.broadcast_to(jnp.arange(v, dtype=jnp.int32), (n, v))}
    return Outcome(
        {SITE: loop.tokens},
        {SITE: loop.log_probs},
        {SITE: loop.active},
        loop.log_weight,
        retval,
        support,
    )


class Call(GenerativeFunction):
    """See `passage`."""

    lm: LanguageModel
    table: Int[Array, "Q V"] | None
    temperature: Float[Array, "..."]
    length: int = eqx.field(static=True)

    def run(
        self, key: PRNGKeyArray | None, given: Given, args: tuple, request: Request = PLAIN
    ) -> Outcome:
        """See `GenerativeFunction.run`; args: the `Prefix` to write after."""
        if len(args) != 1 or not isinstance(args[0], Prefix):
            raise ProgramError(
                "a passage is called with the prompt that it is written after: ctx.call(name, "
                "models.passage(lm, max_tokens), prefix); lm.prompt or models.reprompt makes one"
            )
        laws = Laws(self.lm, args[0], self.temperature, None, self.table)
        lm, zero = self.lm, jnp.int32(0)
        state = lm.start(args[0], self.length, gaps=True)
        last, over = jnp.full((), lm.eos, jnp.int32), jnp.zeros((), bool)
        loop = write_passage(laws, key, given, request, self.length, state, None, zero, last, over)
        return outcome(loop, laws, request, loop.passage)


def passage(
    lm: LanguageModel,
    max_tokens: int,
    table: Int[Array, "Q V"] | None = None,
    temperature: Any = 1.0,
) -> Call:
    """One call of a language model inside a program.

    As in `written = ctx.call(name, models.passage(lm, max_tokens), prefix)`. Law: tokens from
    softmax(logits / temperature) until end of text, a delimiter (`table`, see `delimiter_table`) or
    `max_tokens`; site "token" [max_tokens], of which what comes after the end does not happen.
    Returns a `Passage`, from which `reprompt` makes the next prompt.
    """
    if max_tokens < 1:
        raise ValueError(f"a passage has at least one token, got max_tokens={max_tokens}")
    return Call(lm, table, jnp.asarray(temperature, dtype=float), max_tokens)
