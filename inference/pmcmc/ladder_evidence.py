"""The evidence from the rungs of a parallel-tempering run.

Thermodynamic integration: Lartillot and Philippe (2006), "Computing Bayes factors using
thermodynamic integration", equation 12; with the bounds of Friel and Pettitt (2008), section 2.1.
Stepping stones: Xie, Lewis, Fan, Kuo and Chen (2011), "Improving marginal likelihood estimation for
Bayesian phylogenetic model selection", equations 11-15.

Both give log Z(last power) - log Z(first power), which is log Z if the powers go from 0 to 1.
Started at power 0 the first rung is the prior *where the likelihood is not zero*: if it can be zero
(a `Reject()`, a factor of -inf), log P(likelihood > 0) under the prior has to be added.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .parallel_tempering import Tempered


class Thermodynamic(eqx.Module):
    """Log Z by the trapezoidal rule over the mean log likelihoods of the rungs, nats.

    *Biased*, however long the run, by the rule's error, which falls with the number of rungs.
    `lower` and `upper` estimate sums that are below and above log Z for every ladder, since the
    mean grows with the power. `standard_error` is that of the trapezoid, by batch means: the
    bias is no part of it. `means` [K] are the rungs' mean log likelihoods.
    """

    log_evidence: Float[Array, "*batch"]
    standard_error: Float[Array, "*batch"]
    lower: Float[Array, "*batch"]
    upper: Float[Array, "*batch"]
    means: Float[Array, "*batch k"]


class SteppingStone(eqx.Module):
    """Log Z as a sum over neighbouring rungs of log E[likelihood^(difference of powers)], nats.

    *Consistent* for every ladder as the run grows, not unbiased: chains are no independent draws,
    and a logarithm is taken. `parts` [K - 1] are the summands; `standard_error` is by batch means,
    to first order in the run's noise.
    """

    log_evidence: Float[Array, "*batch"]
    standard_error: Float[Array, "*batch"]
    parts: Float[Array, "*batch pairs"]


def thermodynamic(run: Tempered, discard: int = 0, batches: int | None = None) -> Thermodynamic:
    """Thermodynamic integration, without the first `discard` moves.

    The error's batches are by default as many as the root of the number of moves. Where a rung's
    likelihood was zero after `discard` (an impossible start) the result is -inf or NaN.
    """
    heat = _kept(run, discard, batches)
    gaps = jnp.diff(run.exponents).astype(heat.dtype)
    means = jnp.mean(heat, axis=0)
    low, high = gaps * means[:-1], gaps * means[1:]
    # A rung counts with half of each gap beside it.
    half = jnp.concatenate([gaps, jnp.zeros(1, gaps.dtype)]) / 2
    shares = half + jnp.roll(half, 1)
    return Thermodynamic(
        jnp.sum(shares * means),
        _batch_error(heat @ shares, batches),
        jnp.sum(jnp.minimum(low, high)),
        jnp.sum(jnp.maximum(low, high)),
        means,
    )


def stepping_stone(run: Tempered, discard: int = 0, batches: int | None = None) -> SteppingStone:
    """The stepping-stone estimate, without the first `discard` moves; see `thermodynamic`."""
    heat = _kept(run, discard, batches)
    gaps = jnp.diff(run.exponents).astype(heat.dtype)
    rises = gaps[None] * heat[:, :-1]
    parts = jax.nn.logsumexp(rises, axis=0) - jnp.log(jnp.asarray(len(rises), heat.dtype))
    # Relative to its mean a move's summand is its influence on the logarithm of the mean.
    influence = jnp.sum(jnp.exp(rises - parts[None]), axis=1)
    return SteppingStone(jnp.sum(parts), _batch_error(influence, batches), parts)


def _kept(run: Tempered, discard: int, batches: int | None) -> Float[Array, "moves k"]:
    moves, rungs = run.log_likelihood.shape
    least = 4 if batches is None else 2 * batches
    if rungs < 2 or not 0 <= discard <= moves - least or (batches is not None and batches < 2):
        raise ValueError(
            f"an evidence needs two powers or more and at least {least} moves after those "
            f"discarded, in two batches or more; got {rungs} powers, {moves} moves, "
            f"discard={discard}, batches={batches}"
        )
    return run.log_likelihood[discard:]


def _batch_error(series: Float[Array, " moves"], batches: int | None) -> Float[Array, ""]:
    """The standard error of a correlated series' mean: batches are nearly independent."""
    n = series.shape[0]
    count = int(n**0.5) if batches is None else batches
    size = n // count
    means = jnp.mean(series[n - count * size :].reshape(count, size), axis=1)
    return jnp.std(means, ddof=1) / jnp.sqrt(jnp.asarray(count, series.dtype))
