"""Proper weighting: E[w f(x)] = Z E_post[f(x)] (Naesseth, Lindsten, Schon 2019, section 2.2)."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ..enumeration import ExactPosterior, enumerate
from ..target import Target, as_target
from .functions import Features, features, z_scores
from .result import LawResult, Measure, decide, roundings
from .statistics import batches, moments

ADVICE = (
    "The algorithm is not properly weighted for this target. Look for a proposal that misses "
    "values the model allows, a density that is not that of the draw, a weight that is reset or "
    "counted twice at resampling, or choices that were not gathered with their ancestors."
)


class _Run(eqx.Module):
    """One run: for each function the mean of w f(x) / Z over particles; then two log evidences."""

    algorithm: Any
    target: Target
    functions: Features
    log_evidence: Float[Array, ""]

    def __call__(self, key):
        particles = self.algorithm.run(key, self.target)
        log_w = particles.log_weights
        dead = jnp.isneginf(log_w)
        w = jnp.where(
            dead, jnp.zeros_like(log_w), jnp.exp(log_w - self.log_evidence.astype(log_w.dtype))
        )
        values = jax.vmap(self.functions)(particles.choices).astype(w.dtype)
        terms = jnp.where(dead[:, None], jnp.zeros_like(values), w[:, None] * values)
        whole = jax.nn.logsumexp(log_w) - jnp.log(jnp.asarray(log_w.shape[0], log_w.dtype))
        return jnp.mean(terms, 0), jnp.stack([whole, particles.log_evidence.astype(whole.dtype)])


def proper_weighting(
    key: PRNGKeyArray,
    algorithm: Any,
    target: Any,
    *,
    functions: Mapping[str, Callable] | None = None,
    runs: int = 2**14,
) -> LawResult:
    """Check an algorithm's population against the enumerated target.

    Law: the mean over runs of (1/N) sum_i w_i f(x_i) is Z E_post[f] for every f, dead runs counted
    as 0; and log_evidence = logsumexp(log_weights) - log N in every run. `algorithm` has `run(key,
    target)`, which returns `log_weights` [N], `choices` with leading axis N, and `log_evidence`.
    `functions`, by name, are `f(choices) -> array`; by default see `Features`. A run at the default
    takes seconds on a tiny model.
    """
    target = as_target(target)
    posterior = enumerate(target)
    measure = weighting(algorithm, target, posterior, functions)
    return decide("proper weighting", measure, key, runs, ADVICE)


def weighting(
    algorithm: Any,
    target: Target,
    posterior: ExactPosterior,
    functions: Mapping[str, Callable] | None = None,
) -> Measure:
    """The z-scores of proper weighting, as a function of key and runs."""
    if np.isneginf(posterior.log_evidence):
        return lambda key, runs: _impossible(key, runs, algorithm, target)
    f, exact = features(posterior, functions)
    one = _Run(algorithm, target, f, jnp.asarray(posterior.log_evidence, float))

    def measure(key, runs):
        gaps = []

        def values():
            for (terms, evidences), count in batches(one, key, runs):
                gaps.append(_gap(np.asarray(evidences)[:count]))
                yield terms, count

        mean, error, n = moments(values())
        z, untested = z_scores(f, mean, error, exact, n)
        z["evidence"] = z.pop("1")
        z["log_evidence = logsumexp(log_weights) - log N"] = max(gaps)
        return z, untested

    return measure


def _gap(evidences: np.ndarray) -> float:
    both = np.isneginf(evidences).all(-1)
    whole, said = np.where(np.expand_dims(both, -1), 0.0, evidences).T
    with np.errstate(invalid="ignore"):
        return roundings(whole - said, np.where(np.isfinite(whole), whole, 0.0))


class _Dead(eqx.Module):
    algorithm: Any
    target: Target

    def __call__(self, key):
        return jnp.all(jnp.isneginf(self.algorithm.run(key, self.target).log_weights))


def _impossible(key, runs, algorithm, target):
    alive = sum(
        int(np.sum(~np.asarray(dead)[:count]))
        for dead, count in batches(_Dead(algorithm, target), key, runs)
    )
    return {"impossible target: weights are 0": float("inf") if alive else 0.0}, []
