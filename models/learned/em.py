"""Expectation maximisation over latent choices, its E-step by weighted and resampled draws.

Dempster, Laird and Rubin (1977); with draws in the E-step: Wei and Tanner (1990), "A Monte Carlo
implementation of the EM algorithm". For latent thoughts of a language model: the thoughts are the
free choices of a target whose answer is constrained, its algorithm an importance sampler or SMC,
and the M-step a few steps of a training loop.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ...inference.particles import Particles
from ...ppl.algorithm import Algorithm
from ...ppl.partial import Choices
from ...ppl.target import as_target


def e_step(
    key: PRNGKeyArray, algorithm: Algorithm, target: Any, *, resampled: bool = False
) -> Particles:
    """Draws of the latent choices for a target at its present parameters.

    As weighted draws; or `resampled` to equal weights, for an M-step on texts as they are. The
    evidence they carry estimates the likelihood that EM raises.
    """
    key_run, key_pick = jax.random.split(key)
    particles = algorithm.run(key_run, as_target(target))
    return particles.resample(key_pick) if resampled else particles


def m_objective(target: Any, choices: Choices, log_weights: Float[Array, "n"]) -> Float[Array, ""]:
    """sum_i W_i log gamma(z_i): what the M-step raises over the target's parameters; nats.

    gamma is the joint density of latent choices and constraints. At the parameters that the draws
    were made with, its gradient is that of log Z (Fisher's identity), up to the error of W.
    """
    target = as_target(target)
    weights = jax.nn.softmax(jax.lax.stop_gradient(log_weights))
    each = jax.vmap(target.log_density)(choices)
    return jnp.sum(jnp.where(weights > 0, weights * jnp.where(weights > 0, each, 0.0), 0.0))
