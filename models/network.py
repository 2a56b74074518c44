"""A Flax NNX module as a pytree, so that networks live in programs, proposals and `vi.fit`."""

from typing import Any

import equinox as eqx
from jaxtyping import PyTree


class Network(eqx.Module):
    """A callable: `nnx.merge(graph, variables)`, applied; `graph` is static, `variables` arrays.

    The module is used as a function: what it writes to its own variables in a call is lost.
    """

    graph: Any = eqx.field(static=True)
    variables: PyTree

    def __call__(self, *args: Any, **options: Any) -> Any:
        """The module's output."""
        return self.module(*args, **options)

    @property
    def module(self) -> Any:
        """The Flax module itself, for its other methods."""
        from flax import nnx

        return nnx.merge(self.graph, self.variables)


def network(module: Any) -> Network:
    """The `Network` of a Flax NNX module, whose parameters it takes as they are now."""
    from flax import nnx

    graph, variables = nnx.split(module)
    return Network(graph, variables)
