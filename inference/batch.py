"""One run for each of a batch of targets, in one compiled call."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from ..ppl.target import Target


def over_targets(
    run: Callable[[PRNGKeyArray, Target], PyTree], key: PRNGKeyArray, targets: Target
) -> PyTree:
    """`run(fold_in(key, i), target i)` for each i, under `vmap`: a leading batch axis everywhere.

    Args and constraints of `targets` have a leading batch axis; the model is shared. ValueError if
    they do not all have the same one.
    """
    batched = (targets.args, targets.constraints)
    sizes = {jnp.shape(x)[0] if jnp.shape(x) else None for x in jax.tree.leaves(batched)}
    if len(sizes) != 1 or None in sizes:
        raise ValueError(
            "a batch of targets needs args and constraints that all have one leading batch axis; "
            f"the sizes are {sorted(map(str, sizes))}. Bind what is shared to the model with "
            "ppl.bind"
        )

    def one(i, args, constraints):
        target = Target(targets.model, args, constraints, targets.exponent)
        return run(jax.random.fold_in(key, i), target)

    return jax.vmap(one)(jnp.arange(sizes.pop()), *batched)
