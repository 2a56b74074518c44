"""Reading a posterior over texts: distinct texts, and what each token did to the weight."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ...inference.particles import Particles
from ...ppl.compiled import compiled
from ...ppl.distributions import Token
from ...ppl.feynman_kac import FeynmanKac, Retained
from ...ppl.partial import Choices, as_given
from ...ppl.proposal import Proposal
from ...ppl.target import Target, as_target
from .protocol import LanguageModel
from .writing import Generation


class Reading(NamedTuple):
    """A text with its posterior probability and the number of particles that wrote it."""

    text: str
    probability: float
    particles: int
    finished: bool


def texts(lm: LanguageModel, particles: Particles, site: str = "token") -> list[Reading]:
    """The distinct texts of a population, most probable first; equal texts are merged.

    Probabilities are the normalized weights: a self-normalized (consistent) estimate. Texts of
    weight zero are left out; a dead population gives an empty list.
    """
    return [reading for reading, _ in heaviest(lm, particles, site)]


def heaviest(
    lm: LanguageModel, particles: Particles, site: str = "token"
) -> list[tuple[Reading, int]]:
    """`texts`, each with the number of its heaviest particle."""
    if lm.tokenizer is None:
        raise ValueError("this model has no tokenizer: read particles.choices instead")
    log_weights = np.asarray(particles.log_weights, np.float64)
    if not np.isfinite(log_weights).any():
        return []
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    merged: dict[tuple[str, bool], list[int]] = {}
    rows, lengths = np.asarray(particles.choices[site]), np.asarray(particles.lengths)
    for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        ids = [int(token) for token in row[:length]]
        finished = bool(ids) and ids[-1] == lm.eos
        text = lm.tokenizer.decode(ids[:-1] if finished else ids)
        merged.setdefault((text, finished), []).append(i)
    found = []
    for (text, done), who in merged.items():
        reading = Reading(text, float(weights[who].sum()), len(who), done)
        found.append((reading, max(who, key=lambda i: weights[i])))
    return sorted((f for f in found if f[0].probability > 0), key=lambda f: -f[0].probability)


class PerToken(eqx.Module):
    """What each token of each particle did, as arrays; entries after the end of a text are 0.

    - `ids` [N, T], `written` [N, T]: tokens, and which there are (the end among them).
    - `log_weights` [N, T], nats: what the token added to the particle's log weight; -inf, or NaN,
      where it ended it. With `first` [N], before the first token, and `last` [N], after the last
      step, they sum to the log weight of a particle that is never resampled.
    - `log_draws` [N, T], nats: the log probability by which the token is drawn.
    - `log_probs` [N, T], nats: that of the language model at temperature 1; None for a model that
      is not a `Generation`.
    """

    ids: Int[Array, "n T"]
    written: Bool[Array, "n T"]
    log_weights: Float[Array, "n T"]
    first: Float[Array, "n"]
    last: Float[Array, "n"]
    log_draws: Float[Array, "n T"]
    log_probs: Float[Array, "n T"] | None


def per_token(
    target: Any, particles: Particles, site: str = "token", proposal: Proposal | None = None
) -> PerToken:
    """Recompute what each token did, by writing the texts of the particles once more.

    `target` is the model, or target, that the run was of, and `proposal` the one that it drew by,
    if any. It costs what the run cost.
    """
    if particles.log_weights.ndim != 1:
        raise ValueError("this is a batch of runs: pick one, jax.tree.map(lambda x: x[0], runs)")
    return _per_token(as_target(target), particles.choices, particles.lengths, site, proposal)


@compiled
def _per_token(
    target: Target,
    choices: Choices,
    lengths: Array,
    site: str,
    proposal: Proposal | None,
) -> PerToken:
    kernel = FeynmanKac(target, proposal)
    fixed, fixed_later = kernel.model.split(as_given(target.constraints), target.args)
    # Everything is given: the key is for densities that are estimated.
    key, here = jax.random.key(0), jnp.ones((), bool)

    kept, kept_later = jax.vmap(kernel.split)(choices)
    moved = jax.vmap(
        lambda kept: kernel.init(key, fixed, Retained(kept, here)), axis_size=lengths.shape[0]
    )(kept)

    def one(state, row, t, given):
        own = None  # the language model's own log probability
        if isinstance(target.model, Generation):
            own = Token(state.logits).log_prob(row[site].value)
        moved = kernel.step(jax.random.fold_in(key, t), given, state, t, Retained(row, here))
        return moved.state, (moved.log_potential, moved.log_probs[site], own)

    def step(state, inputs):
        t, rows, given = inputs

        def write(state):
            return jax.vmap(one, (0, 0, None, None))(state, rows, t, given)

        def rest(state):
            return state, jax.tree.map(jnp.zeros_like, jax.eval_shape(write, state)[1])

        # Most texts are shorter than they may be: nothing is computed after the longest.
        return jax.lax.cond(t < jnp.max(lengths), write, rest, state)

    steps = jnp.arange(kernel.model.length, dtype=jnp.int32)
    rows = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), kept_later)
    state, each = jax.lax.scan(step, moved.state, (steps, rows, fixed_later))
    log_weights, log_draws, log_probs = jax.tree.map(lambda x: x.T, each)
    first, last = moved.log_potential, jax.vmap(kernel.end)(state)
    ids = choices[site]
    written = jnp.arange(ids.shape[1], dtype=lengths.dtype)[None] < lengths[:, None]
    if log_probs is not None:
        log_probs = jnp.where(written, log_probs, 0.0)
    return PerToken(ids, written, log_weights, first, last, log_draws, log_probs)
