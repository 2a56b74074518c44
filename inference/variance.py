"""Variance of a run's estimates, from that one run.

Lee and Whiteley (2018), "Variance estimation in the particle filter", equation (5) and Theorem 1,
where Eve indices, the first ancestors of the final particles, say which of them are dependent;
Chan and Lai (2013) is its leading term. With a lag, Olsson and Douc (2019), "Numerically stable
online estimation of variance in particle filters".
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from .particles import Particles, trace_back
from .resampling import is_dead


def eve_indices(particles: Particles, lag: int | None = None) -> Int[Array, "n"]:
    """The index of each final particle's ancestor after init, or `lag` steps before the end."""
    length, n = particles.ancestors.shape
    last = jnp.arange(n, dtype=jnp.int32)
    used = particles.ancestors if lag is None else particles.ancestors[max(length - lag, 0) :]
    return trace_back(used, last)[0]


def of_evidence(particles: Particles) -> Float[Array, ""]:
    """Estimate of var(Z-hat) / Z^2, and so nearly of the variance of log Z-hat.

    Law: with multinomial resampling at times fixed beforehand, the expectation of Z-hat^2 times
    this is var(Z-hat), for every n >= 2. It may be negative. With resampling decided by the
    effective size it is consistent in n. The other resamplers have less variance than this says.
    NaN if the run died. It says nothing where all particles have one first ancestor (it is then 1);
    more particles help.
    """
    weights = particles.weights
    shares = _by_eve(weights, eve_indices(particles))
    distinct = 1 - jnp.sum(shares**2)
    dead = is_dead(particles.log_weights)
    return jnp.where(dead, jnp.nan, 1 - _inflation(particles, None) * distinct)


def of_integral(particles: Particles, f: Callable[[Any], PyTree]) -> PyTree:
    """Estimate of var((1/N) sum_i w_i f(x_i)) / Z^2: of the unnormalised estimate of Z E_post[f].

    Law: as `of_evidence`, which is f = 1. `f(choices)` returns a tree.
    """
    weights, eve = particles.weights, eve_indices(particles)
    factor = _inflation(particles, None)

    def one(x):
        terms = _weighed(weights, x)
        whole = jnp.sum(terms, axis=0) ** 2
        return whole - factor * (whole - jnp.sum(_by_eve(terms, eve) ** 2, axis=0))

    return jax.tree.map(one, jax.vmap(f)(particles.choices))


def of_expectation(
    particles: Particles, f: Callable[[Any], PyTree], lag: int | None = None
) -> PyTree:
    """Estimate of the variance of `particles.expectation(f)`; its root is a standard error.

    Law: n times it converges to the asymptotic variance (multinomial resampling; the other
    resamplers have less). With a `lag` dependence that is older than so many steps is left out: a
    little bias, and no collapse in long runs, for f of the last choices. NaN if the run died.
    """
    weights, eve = particles.weights, eve_indices(particles, lag)
    factor = _inflation(particles, lag)

    def one(x):
        mean = jnp.sum(_weighed(weights, x), axis=0, keepdims=True)
        terms = _weighed(weights, x.astype(weights.dtype) - mean)
        return factor * jnp.sum(_by_eve(terms, eve) ** 2, axis=0)

    return jax.tree.map(one, jax.vmap(f)(particles.choices))


def _inflation(particles: Particles, lag: int | None) -> Float[Array, ""]:
    """(N / (N - 1)) to the number of selections + 1."""
    length, n = particles.ancestors.shape
    if n < 2:
        raise ValueError("one particle says nothing of its variance: use n_particles >= 2")
    used = particles.resampled if lag is None else particles.resampled[max(length - lag, 0) :]
    times = jnp.sum(used, dtype=jnp.int32).astype(particles.log_weights.dtype)
    return jnp.asarray(n / (n - 1), particles.log_weights.dtype) ** (times + 1)


def _weighed(weights: Float[Array, "n"], x: Array) -> Array:
    w = weights.reshape((-1,) + (1,) * (x.ndim - 1))
    x = x.astype(weights.dtype)
    return jnp.where(w > 0, w * x, jnp.zeros_like(x)) + 0 * jnp.sum(weights)


def _by_eve(terms: Array, eve: Int[Array, "n"]) -> Array:
    return jax.ops.segment_sum(terms, eve, num_segments=terms.shape[0])
