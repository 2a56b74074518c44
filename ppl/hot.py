"""Large per-particle state: carried through a run, never recorded."""

import equinox as eqx
import jax
from jaxtyping import PyTree


class Hot(eqx.Module):
    """Marks a large part of a state-space model's state, such as a key-value cache.

    What is inside is carried from step to step and gathered at resampling, and appears in no
    trace, no record and no result: there it is `Hot(None)`. It has to be a deterministic function
    of args and choices, because `StateSpace.replay` rebuilds it from them. The hot state of a
    particle that has finished is unspecified (it is not frozen, which would copy it at every
    step).
    """

    value: PyTree = None


def is_hot(x) -> bool:
    """True for a `Hot` node, for use as `is_leaf`."""
    return isinstance(x, Hot)


def drop_hot(tree: PyTree) -> PyTree:
    """The tree with the content of every `Hot` node removed."""
    return jax.tree.map(lambda x: Hot(None) if is_hot(x) else x, tree, is_leaf=is_hot)


def map_cold(fn, tree: PyTree, *rest: PyTree) -> PyTree:
    """`jax.tree.map` outside `Hot` nodes; of these the one in `tree` is kept as it is."""
    return jax.tree.map(lambda x, *xs: x if is_hot(x) else fn(x, *xs), tree, *rest, is_leaf=is_hot)
