"""Given and free spans: a text of which some stretches are known."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ...ppl import dist
from ...ppl.potential import Potential
from ...ppl.state_space import Keep
from ...ppl.twist import Twist
from .latent import Latent, latent
from .protocol import LanguageModel, Prefix, Prompt
from .writing import Generation, generation

_FREE, _END = -1, -2


class Free(NamedTuple):
    """A free span of `least` to `most` tokens, or of exactly `most`."""

    most: int
    least: int | None = None


Span = Free | str | list[int] | tuple[int, ...]


class Template(Potential):
    """Weight 1 if the text is the plan, else 0: given tokens where given, any where free.

    `plan` [P] holds token ids, -1 for any token and -2 after the end. It knows log_next: given
    tokens are written with certainty and their probability is the weight, as in an observation.
    """

    plan: Int[Array, "P"]
    eos: int = eqx.field(static=True)
    vocab_size: int = eqx.field(static=True)

    def start(self, length: int):
        """Tokens written, and whether all agree."""
        return jnp.zeros((), jnp.int32), jnp.ones((), bool)

    def advance(self, state, symbol, context=None):
        """See `Potential.advance`."""
        count, fits = state
        wanted = self._at(count)
        return count + 1, fits & ((wanted == _FREE) | (wanted == symbol))

    def log_prefix(self, state, remaining=None):
        """See `Potential.log_prefix`."""
        count, fits = state
        if remaining is not None:
            needed = jnp.sum(self.plan != _END, dtype=jnp.int32) - count + 1
            fits = fits & (needed <= remaining)
        return jnp.where(fits, 0.0, -jnp.inf)

    def log_complete(self, state, context=None):
        """See `Potential.log_complete`."""
        count, fits = state
        return jnp.where(fits & (self._at(count) == _END), 0.0, -jnp.inf)

    def log_next(self, state, remaining=None) -> Float[Array, "V"]:
        """See `Potential.log_next`."""
        count, fits = state
        wanted = self._at(count)
        token = jnp.arange(self.vocab_size, dtype=jnp.int32)
        is_end = token == self.eos
        given = jnp.where(wanted == _END, is_end, token == wanted)
        possible = jnp.where(wanted == _FREE, ~is_end, given) & fits
        return jnp.where(possible, 0.0, -jnp.inf)

    def _at(self, count: Array) -> Array:
        size = self.plan.shape[0]
        return jnp.where(count < size, self.plan[jnp.minimum(count, size - 1)], _END)


def template(lm: LanguageModel, *spans: Span) -> Template:
    """The potential of a text of given and free spans.

    As in `story * models.template(lm, "The ", models.Free(3), " sea")`. Spans are texts (for a
    model with a tokenizer; each is tokenized by itself), token ids, or `Free(n)`, exactly n tokens.
    Law: p(x) over the texts of this form that end after the last span; the evidence is the
    probability that a text is one. Given spans of unknown place: `infilling`, or a regular
    expression.
    """
    parts = [_tokens(lm, span) for span in spans]
    if any(isinstance(p, Free) and p.least not in (None, p.most) for p in parts):
        raise ValueError("a template has spans of one length; of several lengths use infilling")
    plan = np.concatenate(
        [np.full(p.most, _FREE) if isinstance(p, Free) else np.asarray(p, int) for p in parts]
    )
    if not len(plan):
        raise ValueError("a template needs at least one span with a token")
    return Template(jnp.asarray(plan, jnp.int32), lm.eos, lm.vocab_size)


def infilling(lm: LanguageModel, prompt: Prompt | Prefix, *spans: Span, **options: Any) -> Latent:
    """A text of given and free spans, the lengths of free spans unknown.

    Law: the length of each `Free(most, least)` is uniform on least..most (site "length_k", k the
    number of the span), the text then as by `template`; `options` are those of `generation`. So
    the posterior is of lengths and texts together. Look-ahead to the next given token:
    `SMC(n, twist=models.next_weight(model))`.
    """
    parts = [_tokens(lm, span) for span in spans]
    longest = [p.most if isinstance(p, Free) else len(p) for p in parts]
    size = sum(longest)
    if not size:
        raise ValueError("infilling needs at least one span with a token")
    kinds = tuple(
        (p.most, p.most if p.least is None else p.least) if isinstance(p, Free) else None
        for p in parts
    )
    given = [np.zeros(0, int) if isinstance(p, Free) else np.asarray(p, int) for p in parts]
    ids = jnp.asarray(np.concatenate([*given, np.zeros(1, int)]), jnp.int32)
    sizes = tuple(len(g) for g in given)

    def draw(ctx, ids):
        lengths = []
        for number, (kind, n) in enumerate(zip(kinds, sizes, strict=True)):
            if kind is None or kind[0] == kind[1]:
                lengths.append(jnp.int32(n if kind is None else kind[0]))
            else:
                law = dist.DiscreteUniform(kind[1], kind[0])
                lengths.append(ctx.sample(f"length_{number}", law).astype(jnp.int32))
        return jnp.stack(lengths)

    def change(base, lengths, ids):
        plan, first, at = jnp.full(size, _END, jnp.int32), 0, jnp.int32(0)
        place = jnp.arange(size, dtype=jnp.int32)
        for number, (kind, n) in enumerate(zip(kinds, sizes, strict=True)):
            inside = (place >= at) & (place < at + lengths[number])
            value = ids[jnp.clip(place - at + first, 0, ids.shape[0] - 1)]
            plan = jnp.where(inside, value if kind is None else _FREE, plan)
            first, at = first + n, at + lengths[number]
        return eqx.tree_at(_plan, base, plan)

    base = generation(lm, prompt, size + 1, **options)
    return latent(base * Template(jnp.full(size, _END, jnp.int32), lm.eos, lm.vocab_size), draw,
                  change, ids)  # fmt: skip


def _plan(base: Any) -> Any:
    """The plan of the template among the potentials of a generation: the first."""
    potential = base.potential
    first = potential if isinstance(potential, Template) else potential.factors[0]
    return first.plan


def _tokens(lm: LanguageModel, span: Span) -> Free | list[int]:
    if isinstance(span, Free):
        least = span.most if span.least is None else span.least
        if not 0 <= least <= span.most:
            raise ValueError(f"a free span has 0 <= least <= most tokens, got {span}")
        return span
    if not isinstance(span, str):
        return [int(i) for i in span]
    if lm.tokenizer is None:
        raise ValueError("this model has no tokenizer: give the spans as lists of token ids")
    return lm.tokenizer.encode(span, special=False)


def next_weight(model: Generation | Latent) -> Twist:
    """A twist: the weight of the next token, known from the logits before it is drawn.

    psi = sum_a p(a | text) exp(log_next(a)), the normalizer of the next locally constrained draw;
    with it a filter resamples one token ahead (the auxiliary filter of Pitt and Shephard). Keeps
    the target; costs nothing but the sum. For a potential without log_next it is 1.
    """
    length, limited = model.length, not isinstance(model.at_length, Keep)

    def ahead(text, t, lm, prefix, temperature, potential):
        heat = temperature[jnp.minimum(t, length - 1)] if temperature.ndim else temperature
        law = jax.nn.log_softmax(text.logits / heat.astype(text.logits.dtype))
        known = potential.log_next(text.carried, length - t if limited else None)
        return jax.nn.logsumexp(law if known is None else law + known.astype(law.dtype))

    if isinstance(model, Latent):

        def log_psi(state, t, draw, change, base, extra):
            return ahead(state.text, t, *change(base, state.latent, *extra).bound)

        return Twist(log_psi)
    return Twist(ahead)
