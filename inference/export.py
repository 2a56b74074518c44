"""A population for ArviZ."""

from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from .particles import Particles

FAILED = "the population is dead or NaN, there are no draws: {message}"


def to_arviz(particles: Particles, key: PRNGKeyArray | None = None) -> Any:
    """The population as ArviZ data: equally weighted draws, and the weights they were drawn by.

    - `posterior`: the choices resampled by weight (multinomial), dims (chain 1, draw N, ...). A
      nested choice is named by its address, `"a/b"`.
    - `sample_stats`: `particle`, the index of the particle that is the draw, and `length`, its
      number of steps; `log_weight` (nats) of particle i is at draw i, as it
      was before resampling.
    - attributes of `posterior`: `log_evidence`, `ess`, `n_particles`.

    The draws of one population share ancestors: diagnostics of chains do not apply to them.

    Args:
        particles: one run.
        key: of the resampling; by default fixed, so that two calls agree.

    Returns:
        `arviz.InferenceData`, or from ArviZ 1.0 on an `xarray.DataTree`.

    Raises:
        ImportError: arviz is not installed.
        ValueError: a batch of runs, a dead population, or no recorded choices.
    """
    try:
        import arviz
    except ImportError as error:
        raise ImportError("to_arviz needs ArviZ: pip install 'feynkac[plots]'") from error
    if particles.log_weights.ndim != 1:
        raise ValueError(
            "this is a batch of runs: instead of exporting all at once pick one, "
            "jax.tree.map(lambda x: x[0], particles)"
        )
    if not particles.choices:
        raise ValueError("the run recorded no choices: use record=Record.choices()")
    if not np.isfinite(float(particles.log_evidence)):
        raise ValueError(FAILED.format(message=particles.status.message))
    n = particles.log_weights.shape[0]
    every = np.arange(n, dtype=np.int32)
    numbered = particles.take(jax.numpy.asarray(every), particles.log_weights)
    draws = jax.random.key(0) if key is None else key
    drawn = jax.tree.map(
        np.asarray, _resampled(draws, (numbered.choices, every, numbered.lengths), particles)
    )
    choices, index, lengths = drawn
    groups = {
        "posterior": {name: x[None] for name, x in _flat(choices)},
        "sample_stats": {
            "particle": index[None],
            "length": lengths[None],
            "log_weight": np.asarray(particles.log_weights)[None],
        },
    }
    attributes = {
        "log_evidence": float(particles.log_evidence),
        "ess": float(particles.ess),
        "n_particles": n,
        "inference_library": "feynkac",
    }
    if hasattr(arviz, "InferenceData"):
        data = arviz.from_dict(**groups)
    else:  # ArviZ 1.0: one dict of groups, an xarray.DataTree
        data = arviz.from_dict(groups)
    data["posterior"].attrs.update(attributes)
    return data


def _resampled(key: PRNGKeyArray, tree: Any, particles: Particles) -> Any:
    from .resampling import Multinomial

    index = Multinomial().ancestors(key, particles.log_weights)
    return jax.tree.map(lambda x: jax.numpy.asarray(x)[index], tree)


def _flat(choices: Any, prefix: str = "") -> Any:
    for name, node in choices.items():
        if isinstance(node, dict):
            yield from _flat(node, f"{prefix}{name}/")
        else:
            yield prefix + name, np.asarray(node)
