"""Context-free grammars, and JSON schemas in full, as constraints: parsed on the host.

For what a finite automaton can say, `models.Regex` and `models.JSONSchema` need no host.
"""

import json
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from ...ppl.combinators.branches import any_member
from ...ppl.hot import Hot
from ...ppl.potential import Potential
from ..language.vocabulary import Vocabulary
from ..rewards.registry import Handle, lookup
from ..rewards.written import Written, end_of
from .parsers import BROKEN, DEAD, GrammarError, Parsers, engine, prepared


class _Parsed(eqx.Module):
    """A text with the packed mask of what may follow it, and its log weight: 0, -inf or NaN."""

    written: Written
    mask: Int[Array, "words"]
    log_weight: Array


class Grammar(Potential):
    """The texts of a context-free grammar, weight 1, all others 0.

    Law: `lm * Grammar(lark)` is p(x) over the texts x of the grammar, however they are split into
    tokens. Draws are guided by the mask of allowed next tokens, one host call a step for the whole
    population (parser states are kept by prefix), and none for texts that have ended.

    Args:
        lark: a grammar in llguidance's dialect of Lark, with a rule `start`.
        cache: number of prefixes whose parser states are kept.

    Raises `GrammarError` if the grammar is malformed, and, on a vocabulary, if it allows no text.
    A prefix on which the parser exceeds its limits has weight NaN.
    """

    parsers: Handle | None
    root: Int[Array, "words"] | None
    eos: Int[Array, ""] | None
    size: int = eqx.field(static=True)
    _source: Handle

    def __init__(self, lark: str, *, cache: int = 2**12):
        self.parsers, self.root, self.eos, self.size = None, None, None, 0
        self._source = Handle(_Source(prepared(lark), cache))

    @staticmethod
    def json_schema(schema: Mapping[str, Any] | str, *, cache: int = 2**12, **options) -> "Grammar":
        """The JSON texts of a schema, or JSON text of one; `options` are llguidance's.

        `whitespace_flexible=False` allows no whitespace but one space after "," and ":" if so
        given by `item_separator` and `key_separator`; `lenient=True` ignores keywords that are not
        known, which are else a `GrammarError`.
        """
        whole: dict = json.loads(schema) if isinstance(schema, str) else dict(schema)
        if options:
            whole["x-guidance"] = {**whole.get("x-guidance", {}), **options}
        return Grammar(f"start: %json {json.dumps(whole)}", cache=cache)

    @staticmethod
    def regex(pattern: str, *, cache: int = 2**12) -> "Grammar":
        """The texts that match a regular expression (Rust's syntax) from beginning to end."""
        escaped = engine().regex_to_lark(pattern, use_ascii="")
        return Grammar(f"start: /{escaped}/", cache=cache)

    def over(self, vocabulary: Vocabulary) -> "Grammar":
        """See `Potential.over`."""
        if self.parsers is not None:
            return self
        source: _Source = self._source.value
        parsers = Parsers(source.lark, vocabulary, source.cache)
        placed = eqx.tree_at(
            lambda g: (g.parsers, g.root, g.eos),
            self,
            (
                Handle(parsers),
                jnp.asarray(parsers.root[1]),
                jnp.asarray(vocabulary.eos, jnp.int32),
            ),
            is_leaf=lambda x: x is None,
        )
        object.__setattr__(placed, "size", vocabulary.size)
        return placed

    def start(self, length):
        """See `Potential.start`."""
        end_of(self.eos, "Grammar")
        assert self.root is not None
        return Hot(_Parsed(Written.nothing(length), self.root, jnp.zeros(())))

    def advance(self, state, symbol, context=None):
        """See `Potential.advance`."""
        old: _Parsed = state.value
        written = old.written.write(symbol, end_of(self.eos, "Grammar"))
        going = ~written.ended & (old.log_weight == 0.0)
        need = going & _bit(old.mask, symbol)
        mask, verdict = self._ask(written, need)
        log_weight = jnp.where(verdict == BROKEN, jnp.nan, jnp.where(verdict == DEAD, -jnp.inf, 0))
        log_weight = jnp.where(going & ~need, -jnp.inf, log_weight.astype(old.log_weight.dtype))
        log_weight = jnp.where(going, log_weight, old.log_weight)
        return Hot(_Parsed(written, jnp.where(going, mask, old.mask), log_weight))

    def log_prefix(self, state, remaining=None):
        """See `Potential.log_prefix`."""
        log_weight = state.value.log_weight
        return log_weight if remaining is None else jnp.where(remaining > 0, log_weight, -jnp.inf)

    def log_complete(self, state, context=None):
        """See `Potential.log_complete`."""
        now: _Parsed = state.value
        return jnp.where(_bit(now.mask, end_of(self.eos, "Grammar")), now.log_weight, -jnp.inf)

    def log_next(self, state, remaining=None):
        """See `Potential.log_next`; with one symbol left, that is the end."""
        mask = state.value.mask
        bits = (mask[:, None] >> jnp.arange(32, dtype=jnp.int32)[None, :]) & 1
        allowed = bits.reshape(-1)[: self.size] == 1
        if remaining is not None:
            last = jnp.arange(self.size, dtype=jnp.int32) == self.eos
            allowed = allowed & (last | (remaining > 1))
        return jnp.where(allowed, 0.0, -jnp.inf)

    def _ask(self, written: Written, need: Bool[Array, ""]) -> tuple[Array, Array]:
        """The mask of what may follow, and whether anything may; zeros where it is not needed."""
        assert self.parsers is not None and self.root is not None
        out = (
            jax.ShapeDtypeStruct(self.root.shape, jnp.int32),
            jax.ShapeDtypeStruct((), jnp.int32),
        )

        def call(number, *args):
            return jax.pure_callback(_answer, out, number, *args, vmap_method="broadcast_all")

        def skip(number, *args):
            return tuple(jnp.zeros(s.shape, s.dtype) for s in out)

        operands = (self.parsers.number, written.tokens, written.count, need)
        return jax.lax.cond(any_member(need), call, skip, *operands)


class _Source:
    """A grammar's text."""

    def __init__(self, lark: str, cache: int):
        self.lark, self.cache = lark, cache


def _bit(mask: Int[Array, "words"], symbol: Int[Array, ""]) -> Bool[Array, ""]:
    """Is the symbol allowed by a packed mask?"""
    symbol = symbol.astype(jnp.int32)
    return ((mask[symbol // 32] >> (symbol % 32)) & 1) == 1


def _answer(number, tokens, count, need):
    """Masks [..., words] and verdicts [...] for a whole population."""
    parsers: Parsers = lookup(number)
    tokens, count, need = map(np.asarray, (tokens, count, need))
    masks = np.zeros((*count.shape, parsers.words), np.int32)
    verdicts = np.zeros(count.shape, np.int32)
    rows, ids = masks.reshape(-1, parsers.words), tokens.reshape(-1, tokens.shape[-1])
    flat = verdicts.reshape(-1)
    for i in np.flatnonzero(need.reshape(-1)):
        rows[i], flat[i] = parsers.after(ids[i, : count.reshape(-1)[i]])
    return masks, verdicts


__all__ = ["Grammar", "GrammarError"]
