"""Losses that tell posterior from filtering draws: contrastive twist learning, SIXO, FUDGE.

Contrastive twist learning: Zhao et al. (2024), "Probabilistic inference in language models via
twisted sequential Monte Carlo", section 4.1. SIXO: Lawson et al. (2022), "SIXO: Smoothing inference
with twisted objectives" (twists as density ratios). FUDGE: Yang and Klein (2021), "FUDGE:
Controlled text generation with future discriminators".

Each returns a loss to be minimised over the twist, for a training loop. Their optimum, with enough
draws and a network that can say it, is log psi* = log expected weight of what comes, constants
included. Self-normalised over the batch: consistent in the number of draws, not unbiased.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...inference.particles import log_mean_exp
from .twist import NextTwist, StateTwist
from .walks import Walks

LearnedTwist = StateTwist | NextTwist


def contrastive(
    twist: LearnedTwist, positives: Walks, negatives: Walks, anchor: float = 0.0
) -> Float[Array, ""]:
    """Contrastive twist learning: mean over t of KL(posterior prefixes || pi_t), up to a constant.

    pi_t is p(prefix) times past weights times psi, normalised. The gradient is that of log psi
    under pi_t (weighted negatives) less that under the posterior (weighted positives).

    Args:
        twist: what is learned.
        positives: sequences weighted for the target, from `SMC` or any other algorithm.
        negatives: the model's draws, or those of a proposal, `walks(..., proposal=...)`.
        anchor: weight of a term that is 0 at the optimum, half the squared error of log E[psi_t] =
            log Z / Z_t. Contrast leaves a constant open at every t at which nothing has ended;
            the evidences fix it, if the weights of the positives carry Z (as `Particles` have it).
    """
    seen = _mean(jax.nn.softmax(positives.log_weights), twist.estimates(positives))
    log_ratio = _normalized(twist.references(negatives))
    alive = ~jnp.isneginf(log_ratio)
    expected = jnp.where(alive, twist.estimates(negatives), 0.0)
    terms = jnp.where(alive, log_ratio + expected, -jnp.inf)
    anyone = alive.any(0)
    log_normalizer = jax.nn.logsumexp(jnp.where(anyone, terms, 0.0), axis=0)
    off = log_normalizer - _evidence_ratio(twist, positives, negatives)
    loss = log_normalizer - seen + 0.5 * anchor * jnp.where(jnp.isfinite(off), off, 0.0) ** 2
    return jnp.mean(jnp.where(anyone, loss, 0.0))


def sixo(twist: LearnedTwist, positives: Walks, negatives: Walks) -> Float[Array, ""]:
    """SIXO: classify prefixes as posterior or filtering draws, by the odds psi Z_t / Z.

    Z_t is the evidence of the first t weights, estimated by the negatives, and Z that of all, by
    the positives, whose weights must therefore carry the evidence (as `Particles` have it).
    Arguments as for `contrastive`.
    """
    past = twist.references(negatives)
    offset = -_evidence_ratio(twist, positives, negatives)

    def log_odds(walks: Walks) -> Array:
        return twist.estimates(walks) + jnp.broadcast_to(offset, walks.log_gain.shape)

    hit = _mean(jax.nn.softmax(positives.log_weights), jax.nn.log_sigmoid(log_odds(positives)))
    correct = _mean(jnp.exp(_normalized(past)), jax.nn.log_sigmoid(-log_odds(negatives)))
    return -jnp.mean(jnp.where(jnp.isfinite(offset), hit + correct, 0.0))


def fudge(twist: LearnedTwist, draws: Walks) -> Float[Array, ""]:
    """FUDGE: cross-entropy of the weight of what came, as a probability, at every prefix.

    Weights of what comes are bounded by exp(known + ceiling) of the twist; larger ones count as
    that much.

    Args:
        twist: one with a `ceiling`; 0 for a constraint, or another weight that is a probability.
        draws: the model's draws, or those of a proposal, then weighted to be the model's.
    """
    if twist.ceiling is None:
        raise ValueError(
            "FUDGE learns a probability: give the twist a ceiling, the largest log weight there "
            "is (0 for a constraint), or use `contrastive`, which needs none"
        )
    bound = draws.known + twist.ceiling.astype(draws.known.dtype)
    possible = draws.active & ~jnp.isneginf(bound)
    log_target = jnp.where(possible, draws.log_future - jnp.where(possible, bound, 0.0), 0.0)
    target = jnp.exp(jnp.minimum(log_target, 0.0))
    log_p = jnp.where(possible, twist.estimates(draws) - jnp.where(possible, bound, 0.0), -1.0)
    rest = -jnp.expm1(jnp.minimum(log_p, -jnp.finfo(log_p.dtype).tiny))
    score = target * log_p + (1 - target) * jnp.log(rest)
    weights = jax.nn.softmax(jnp.sum(draws.log_ratio, axis=1))
    return -jnp.mean(_mean(weights, jnp.where(possible, score, 0.0)))


def _evidence_ratio(twist: LearnedTwist, positives: Walks, negatives: Walks) -> Float[Array, "T"]:
    """Log Z / Z_t, as the draws estimate it."""
    log_past = jax.vmap(log_mean_exp, 1)(twist.references(negatives))
    return log_mean_exp(positives.log_weights) - log_past


def _mean(weights: Float[Array, "..."], values: Float[Array, "n T"]) -> Float[Array, "T"]:
    """sum_n w v; what has weight zero may be anything."""
    weights = weights if weights.ndim == 2 else jnp.broadcast_to(weights[:, None], values.shape)
    return jnp.sum(jnp.where(weights > 0, weights * jnp.where(weights > 0, values, 0.0), 0.0), 0)


def _normalized(log_weights: Float[Array, "n T"]) -> Float[Array, "n T"]:
    """Log normalised weights of each step; -inf where all are zero."""
    alive = ~jnp.isneginf(log_weights)
    anyone = jnp.broadcast_to(alive.any(0), alive.shape)
    total = jax.nn.log_softmax(jnp.where(anyone, log_weights, 0.0), axis=0)
    return jnp.where(anyone, total, -jnp.inf)
