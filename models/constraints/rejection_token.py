"""Adaptive weighted rejection sampling: a token that passes a check, without the whole mask.

Lipkin, LeBrun, Vigly, Loula et al. (2025), "Fast controlled generation from language models with
adaptive weighted rejection sampling", arXiv 2504.05410. The number of checks adapts to how far the
model is from the constraint.
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ...ppl.combinators.branches import any_member
from ...ppl.estimated import EstimatedDistribution
from ..rewards.registry import Handle, lookup
from ..rewards.scores import Texts
from ..rewards.written import Written
from .rejection_device import run_on_device
from .rejection_forms import Geometric, Recursive
from .urn import Urn

ON_DEVICE = 64
"""The limit of rejects on the device, if none is given."""


class TextCheck(eqx.Module):
    """Checks of what a text becomes by one more token: by Python functions, on the host.

    `texts` are handles to the texts' scores, `needed` says whether this particle writes.
    """

    texts: tuple[Handle, ...]
    written: Written
    needed: Bool[Array, ""]


class RejectionToken(EstimatedDistribution):
    """The law q(x) = p(x) c(x) / Z of a token, p = softmax(logits), by candidates and checks.

    Law: a draw x has E[1/w | x] = 1/q(x), as w = p(x) / Z-hat; `estimate_logpdf` gives w with
    E[w] = q(x). So it is a proposal that is properly weighted (`models.rejection` makes one of a
    model's checks), and never computes c for more tokens than it has to. With `max_rejects`,
    reaching the limit is a draw that could not be made: w is inf, and a particle that it proposes
    has weight zero; the weights of the others make up for it, so that the target is the same. So it
    is where no token passes.

    Args:
        logits: [V], nats up to a constant; -inf for what is never drawn.
        check: a JAX function of a token id (int32) that returns a boolean, or a `TextCheck`.
        form: `Recursive()` or `Geometric()`, see there.
        max_rejects: the limit of rejected candidates, or None: none on the host, 64 on the device.
    """

    logits: Float[Array, "V"]
    check: Callable[[Array], Array] | TextCheck
    form: Recursive | Geometric = Recursive()
    max_rejects: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.max_rejects is not None and self.max_rejects < 1:
            raise ValueError(f"max_rejects is at least 1, or None; got {self.max_rejects}")

    def random_weighted(self, key: PRNGKeyArray) -> tuple[Int[Array, ""], Float[Array, ""]]:
        """See `EstimatedDistribution.random_weighted`."""
        token, z = self._run(key, None)
        return token, jnp.where(z == 0, jnp.inf, self._log_p(token) - jnp.log(z))

    def estimate_logpdf(self, key: PRNGKeyArray, value: Int[Array, ""]) -> Float[Array, ""]:
        """See `EstimatedDistribution.estimate_logpdf`; -inf for a token that does not pass."""
        log_p = self._log_p(value)
        _, z = self._run(key, value.astype(jnp.int32))
        possible = (z != 0) & ~jnp.isneginf(log_p)
        return jnp.where(possible, log_p - jnp.log(jnp.where(possible, z, 1)), -jnp.inf)

    def _log_p(self, token: Array) -> Array:
        inside = (token >= 0) & (token < self.logits.shape[-1])
        return jnp.where(inside, jax.nn.log_softmax(self.logits)[token], -jnp.inf)

    def _run(self, key: PRNGKeyArray, retained: Array | None) -> tuple[Array, Array]:
        """A run of the form: its token, and Z-hat (0 if there is no token or it does not pass)."""
        blocks = _blocks(jax.lax.stop_gradient(self.logits))
        if not isinstance(self.check, TextCheck):
            limit = self.max_rejects or ON_DEVICE
            return run_on_device(self.form, key, blocks, self.check, limit, retained)
        number = jnp.int32(-1) if retained is None else retained
        out = (jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((), blocks.dtype))
        ask = functools.partial(_answer, self.form, self.max_rejects)

        def call(operands):
            return jax.pure_callback(ask, out, *operands, vmap_method="broadcast_all")

        def skip(operands):
            return jnp.int32(0), jnp.zeros((), blocks.dtype)

        written, needed = self.check.written, self.check.needed
        operands = (
            tuple(h.number for h in self.check.texts),
            jax.random.key_data(key), blocks, written.tokens, written.count, needed, number,
        )  # fmt: skip
        return jax.lax.cond(any_member(needed), call, skip, operands)


def _blocks(logits: Float[Array, "V"]) -> Float[Array, "B S"]:
    """Probabilities relative to the largest, in blocks, padded with zeros."""
    top = jnp.max(logits)
    weights = jnp.exp(logits - jnp.where(jnp.isneginf(top), jnp.zeros_like(top), top))
    n = weights.shape[0]
    size = 1 << max(0, (n - 1).bit_length() + 1 >> 1)
    return jnp.pad(weights, (0, -n % size)).reshape(-1, size)


def _answer(form, limit, numbers, words, blocks, tokens, count, need, retained):
    """Runs for a whole population: tokens [...] and Z-hats [...]."""
    checks: list[Texts] = [lookup(number) for number in numbers]
    shape, dtype = np.shape(count), blocks.dtype
    words, blocks, tokens, count, need, retained = (
        np.asarray(x).reshape(-1, *np.shape(x)[len(shape) :])
        for x in (words, blocks, tokens, count, need, retained)
    )
    drawn, z = np.zeros(len(count), np.int32), np.zeros(len(count), dtype)
    runs: dict[int, Any] = {}
    raw: dict[int, bytes] = {}
    for i in np.flatnonzero(need).tolist():
        rng = np.random.Generator(np.random.Philox(key=_integer(words[i])))
        urn = Urn(blocks[i], rng)
        if not np.isfinite(urn.whole):
            z[i] = np.nan
            continue
        kept = None if retained[i] < 0 else int(retained[i])
        runs[i] = _checked(form.draw(urn, limit, kept), kept)
        raw[i] = checks[0].reader.raw(tokens[i, : count[i]].tolist())
    answers: dict[int, bool | None] = dict.fromkeys(runs)
    while answers:  # one round: a candidate of each run
        candidates: dict[int, int] = {}
        for i, answer in answers.items():
            try:
                candidates[i] = runs[i].send(answer)
            except StopIteration as end:
                token, z[i] = end.value
                drawn[i] = 0 if token is None else token
        answers = dict(passes(checks, raw, candidates))
    return drawn.reshape(shape), z.reshape(shape)


def _checked(drawing, kept):
    """A run, but first of all the retained token has to pass."""
    if kept is not None and not (yield kept):
        return kept, 0.0
    return (yield from drawing)


def passes(
    checks: list[Texts], raw: dict[int, bytes], candidates: dict[int, int]
) -> dict[int, bool]:
    """Which candidates pass all checks; the texts of a round are asked for together.

    A check of complete texts lets everything pass but the end. What fails to be weighed passes:
    the model then says that the particle's weight is NaN.
    """
    passed = dict.fromkeys(candidates, True)
    for check in checks:
        asked = [
            i for i, token in candidates.items()
            if passed[i] and (check.prefixes or token == check.reader.eos)
        ]  # fmt: skip
        texts = [check.reader.text(raw[i] + check.reader.raw([candidates[i]])) for i in asked]
        for i, log_weight in zip(asked, check.scores(texts), strict=True):
            passed[i] = log_weight != -np.inf
    return passed


def _integer(words: np.ndarray) -> int:
    """The bits of a key, for a counter-based generator."""
    return int.from_bytes(np.ascontiguousarray(words).tobytes()[-16:], "little")
