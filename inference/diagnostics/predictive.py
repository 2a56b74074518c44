"""Posterior predictive p-values (Gelman, Meng and Stern 1996, section 2.2)."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ...ppl.compiled import compiled
from ...ppl.errors import ProgramError
from ...ppl.partial import Choices, as_given, overlay
from ...ppl.target import Target, as_target
from ..particles import Particles


def predictive_draws(
    key: PRNGKeyArray, target: Target, particles: Particles, replicated: Sequence[str]
) -> Choices:
    """Choices of each particle with the sites `replicated` drawn anew given all others [n, ...]."""
    return _draws(key, as_target(target), particles.choices, tuple(replicated))


def predictive_p_value(
    key: PRNGKeyArray,
    target: Target,
    particles: Particles,
    statistic: Callable[[Choices], Array],
    replicated: Sequence[str],
) -> Float[Array, "..."]:
    """P(T(replicated data, latents) >= T(data, latents)) under the posterior; ties count half.

    `statistic(choices)` is an array, of data and latents. `replicated` names the target's
    constrained sites that are data. Near 0 or 1 the model does not make data like these; under the
    model p-values are concentrated about 1/2, not uniform.
    """
    target = as_target(target)
    for name in replicated:
        if name not in target.constraints:
            raise ProgramError(
                f"{name!r} is not constrained, so there are no data to compare with; the "
                f"constraints are {sorted(target.constraints)}"
            )
    new = predictive_draws(key, target, particles, replicated)
    again, once = (jax.vmap(statistic)(c) for c in (new, particles.choices))
    above = jnp.where(again > once, 1.0, jnp.where(again == once, 0.5, 0.0))
    return jnp.tensordot(particles.weights.astype(above.dtype), above, axes=1)


@compiled
def _draws(
    key: PRNGKeyArray, target: Target, choices: Choices, replicated: tuple[str, ...]
) -> Choices:
    fixed = {n: node for n, node in target.constraints.items() if n not in replicated}

    def one(key, choices):
        kept = {n: node for n, node in choices.items() if n not in replicated}
        given = overlay(as_given(fixed), as_given(kept))
        return target.model.run(key, given, target.args).choices

    keys = jax.random.split(key, len(jax.tree.leaves(choices)[0]))
    return jax.vmap(one)(keys, choices)
