"""Unbiased evidence: E[Z-hat] = Z."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ..enumeration import enumerate
from ..target import Target, as_target
from .result import LawResult, decide, standardized
from .statistics import batches, moments

ADVICE = (
    "E[exp(log_evidence)] is not the evidence. Look for weights that are reset at resampling "
    "without their mean being carried, for 1/N, and for dead runs that are left out (they count "
    "as 0)."
)


class _Evidence(eqx.Module):
    algorithm: Any
    target: Target
    log_evidence: Float[Array, ""]

    def __call__(self, key):
        log_z = self.algorithm.run(key, self.target).log_evidence
        ratio = jnp.exp(log_z - self.log_evidence.astype(log_z.dtype))
        return jnp.where(jnp.isneginf(log_z), jnp.zeros_like(ratio), ratio)[None]


def unbiased_evidence(
    key: PRNGKeyArray,
    algorithm: Any,
    target: Any,
    log_evidence: float | Float[Array, ""] | None = None,
    *,
    runs: int = 2**15,
) -> LawResult:
    """Check that the mean of exp(log_evidence) over runs is Z.

    `log_evidence` is the exact one in nats, from a forward-backward pass or a Kalman filter;
    without it the target is enumerated. Of the population only `log_evidence` is looked at.
    """
    target = as_target(target)
    exact = enumerate(target).log_evidence if log_evidence is None else log_evidence
    one = _Evidence(algorithm, target, jnp.asarray(exact, float))

    def measure(key, runs):
        mean, error, _ = moments(batches(one, key, runs))
        expected = 0 if np.isneginf(exact) else 1
        return {"evidence": float(standardized(mean - expected, error)[0])}, []

    return decide("unbiased evidence", measure, key, runs, ADVICE)
