"""The proposal of a model's own checks: tokens by adaptive weighted rejection sampling."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from ...ppl.distributions import Token
from ...ppl.errors import ProgramError
from ...ppl.potential import Potential, Product
from ...ppl.proposal import Proposal
from ...ppl.state_space import Keep
from ..language.writing import Generation, Text, constrained
from ..rewards.check import Check
from .rejection_token import Geometric, Recursive, RejectionToken, TextCheck


def rejection(
    story: Generation,
    check: Callable[[Text, Any], Any] | None = None,
    form: Recursive | Geometric | None = None,
    max_rejects: int | None = None,
) -> Proposal:
    """Proposes tokens that pass the model's checks, with as few checks as that takes.

    `inference.SMC(n, proposal=models.rejection(story))`, for a `story` with `models.Check` among
    its factors: candidates come from the law that the story's other potentials guide, the `Check`s
    are asked about the text with the candidate, and the weight of a token is an unbiased estimate
    of how likely one passes (see `RejectionToken` for law, `form` and `max_rejects`). The target
    stays the story's. A check of complete texts is asked when the end is proposed; where a text
    has to end (`Reject`), the last token proposed is the end.

    Args:
        story: the model that runs, as `generation(...) * Check(...)`.
        check: instead of the story's checks a JAX function `check(text, token) -> bool`, of the
            state of a particle and a token id; it must be True wherever the story's weight is not
            zero.
        form: `Recursive()` (default) or `Geometric()`.
        max_rejects: gives a particle up after so many candidates.
    """
    if not isinstance(story, Generation):
        raise ProgramError(
            f"rejection proposes the tokens of a models.generation(...) * potentials, not of a "
            f"{type(story).__name__}"
        )
    if check is None and not _checks(story.potential, None):
        raise ProgramError(
            "this model has no Check to propose by: multiply it by models.Check(fn, "
            "prefixes=True), or give check=, a JAX function of (text, token)"
        )
    form = Recursive() if form is None else form
    length, limited = story.length, not isinstance(story.at_length, Keep)

    def step(ctx, text, t, lm, prefix, temperature, potential):
        logits = text.logits / (temperature[t] if temperature.ndim else temperature)
        remaining = length - t if limited else None
        if potential is not None:
            favour = potential.log_next(text.carried, remaining)
            logits = constrained(Token(logits), favour)[0].logits
        if limited:
            end = jnp.arange(logits.shape[-1], dtype=jnp.int32) == lm.eos
            logits = jnp.where(end | (t + 1 < length), logits, -jnp.inf)
        if check is None:
            found = _checks(potential, text.carried)
            texts = tuple(c.texts for c, _ in found if c.texts is not None)
            ask = TextCheck(texts, found[0][1].value[0], ~text.ended)
        else:
            ask = functools.partial(check, text)
        ctx.sample("token", RejectionToken(logits, ask, form, max_rejects))

    return Proposal(step)


def _checks(potential: Potential | None, carried: Any) -> list[tuple[Check, Any]]:
    """The checks among the factors of a potential, each with its carried state."""
    factors = potential.factors if isinstance(potential, Product) else (potential,)
    states = (
        carried
        if isinstance(potential, Product) and carried is not None
        else (carried,) * len(factors)
    )
    return [(p, s) for p, s in zip(factors, states, strict=True) if isinstance(p, Check)]
