"""Through the stages of a tempered path, fixed or found on the way."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ...ppl.status import BUDGET, OK
from ...ppl.target import Target
from ..annealing.adaptive import conditional_ess
from ..resampling import effective_sample_size
from .cloud import Cloud
from .stages import AdaptiveStages, FixedStages, Stages, limit
from .traces import log_likelihood


def increments(
    path: Target, cloud: Cloud, exponent: Float[Array, ""]
) -> tuple[Float[Array, " n"], Float[Array, ""]]:
    """Log likelihood^(exponent - old exponent) of each particle, and the exponent."""
    exponent = exponent.astype(cloud.exponent.dtype)
    log_likelihoods = jax.vmap(lambda trace: log_likelihood(path, trace))(cloud.traces)
    return (exponent - cloud.exponent) * log_likelihoods, exponent


def through(
    stage: Callable, carry: tuple[Cloud, Any], path: Target, stages: Stages
) -> tuple[Cloud, Any]:
    """Apply stage(carry, exponent) up to exponent 1; the carry is (cloud, anything)."""
    if isinstance(stages, FixedStages):
        return jax.lax.scan(lambda c, e: (stage(c, e), None), carry, stages.exponents())[0]
    assert isinstance(stages, AdaptiveStages)

    def going(carry):
        cloud = carry[0]
        more = (cloud.exponent < 1) & (cloud.stage < stages.max_stages)
        return more & (cloud.status.code == OK)

    def one(carry):
        cloud = carry[0]
        exponent, fits = next_exponent(path, cloud, stages)
        last = cloud.stage + 1 >= stages.max_stages
        step = cloud.stage + 1
        new, rest = stage(carry, jnp.where(last, jnp.ones_like(exponent), exponent))
        status = new.status.then(last & ~fits, BUDGET, step)
        return replace(new, status=status), rest

    return jax.lax.while_loop(going, one, carry)


def next_exponent(
    path: Target, cloud: Cloud, stages: AdaptiveStages
) -> tuple[Float[Array, ""], Bool[Array, ""]]:
    """The next exponent, and whether going straight to 1 fits the population."""
    log_likelihoods = jax.vmap(lambda trace: log_likelihood(path, trace))(cloud.traces)
    log_weights, start = cloud.log_weights, cloud.exponent
    alive = ~jnp.isneginf(log_weights)
    log_likelihoods = jnp.where(alive, log_likelihoods, 0.0)

    def fits(exponent):
        increments = (exponent - start) * log_likelihoods
        if stages.cess is not None:
            size = conditional_ess(log_weights, increments)
            return size >= stages.cess.astype(size.dtype) * log_weights.shape[0]
        assert stages.ess is not None
        size = effective_sample_size(log_weights + increments)
        return size >= stages.ess.astype(size.dtype) * effective_sample_size(log_weights)

    found = limit(fits, start)
    # Where even the least step is too much the step is the least there is.
    info = jnp.finfo(start.dtype)
    least = jnp.minimum(start + 2 * info.eps * start + info.tiny, 1)
    return jnp.maximum(found, least), fits(jnp.ones_like(start))
