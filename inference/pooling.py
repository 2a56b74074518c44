"""Several independent populations as one."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..ppl.status import DEAD, OK, Status
from .particles import Particles, log_mean_exp
from .resampling import effective_sample_size


def pool(*populations: Particles) -> Particles:
    """The union of independent populations of the same target and size.

    Law: properly weighted, since the weights carry each run's evidence; Z-hat is the mean of the
    runs' Z-hats, and the standard error of that mean over runs is that of the pooled one. A dead
    run counts as zero, and the status says so only if all died.
    """
    if not populations:
        raise ValueError("pool needs at least one population")
    sizes = {p.log_weights.shape for p in populations}
    if len(sizes) != 1:
        raise ValueError(
            f"pool needs populations of one size, got {sorted(sizes)}: weights are per particle of "
            "a run"
        )
    n = populations[0].log_weights.shape[0]

    def joined(name: str, axis: int = 0):
        return jax.tree.map(
            lambda *xs: jnp.concatenate(xs, axis), *(getattr(p, name) for p in populations)
        )

    log_weights = joined("log_weights")
    heuristic = jnp.any(jnp.isnan(jnp.stack([p.log_evidence for p in populations])))
    evidence = jnp.stack([p.log_evidence_history for p in populations])
    ess = jnp.stack([p.ess_history for p in populations])
    ancestors = jnp.concatenate(
        [p.ancestors + jnp.asarray(i * n, p.ancestors.dtype) for i, p in enumerate(populations)],
        axis=-1,
    )
    return Particles(
        choices=joined("choices"),
        log_weights=log_weights,
        log_evidence=jnp.where(heuristic, jnp.nan, log_mean_exp(log_weights)),
        ess=effective_sample_size(log_weights),
        status=_pooled([p.status for p in populations]),
        ancestors=ancestors,
        resampled=jnp.any(jnp.stack([p.resampled for p in populations]), axis=0),
        ess_history=_pooled_ess(evidence, ess),
        log_evidence_history=jax.vmap(log_mean_exp, in_axes=1)(evidence),
        exponents=None,
        acceptance=jnp.mean(jnp.stack([p.acceptance for p in populations]), axis=0),
        lengths=joined("lengths"),
        position=jnp.int32(-1),
        state=joined("state"),
        record=joined("record"),
    )


def _pooled_ess(
    log_evidence: Float[Array, "runs moves"], ess: Float[Array, "runs moves"]
) -> Float[Array, " moves"]:
    """(sum w)^2 / sum w^2 of the union, from that of each run and its mean weight."""
    top = jnp.max(log_evidence, axis=0, keepdims=True)
    z = jnp.exp(log_evidence - jnp.where(jnp.isneginf(top), 0.0, top))
    squares = jnp.sum(z**2 / jnp.where(z == 0, 1.0, ess), axis=0)
    return jnp.sum(z, axis=0) ** 2 / jnp.where(squares == 0, 1.0, squares)


def _pooled(statuses: list[Status]) -> Status:
    """The first failure; a run that died is an evidence of 0, and a failure only if all did."""
    first = functools.reduce(lambda a, b: a.then(b.code != OK, b.code, b.step, b.site), statuses)
    rest = [
        eqx.tree_at(lambda s: s.code, s, jnp.where(s.code == DEAD, OK, s.code)) for s in statuses
    ]
    others = functools.reduce(lambda a, b: a.then(b.code != OK, b.code, b.step, b.site), rest)
    dead = jnp.all(jnp.stack([s.code == DEAD for s in statuses]))
    return jax.tree.map(lambda a, b: jnp.where(dead, a, b), first, others)
