"""A small network on features, standardized: what a learned twist is made of."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..network import Network, network


class Head(eqx.Module):
    """A network on standardized features, [..., D] to [..., K].

    Mean and scale of the features are data: no gradient passes to them.
    """

    network: Network
    mean: Float[Array, "D"]
    scale: Float[Array, "D"]

    def __call__(self, features: Float[Array, "*batch D"]) -> Float[Array, "*batch K"]:
        """The network's output, in the dtype of `mean`."""
        mean, scale = jax.lax.stop_gradient((self.mean, self.scale))
        features = features.astype(mean.dtype)
        mean, scale = (jnp.broadcast_to(x, features.shape) for x in (mean, scale))
        return self.network((features - mean) / scale)

    @property
    def trainable(self) -> "Head":
        """The same tree of booleans: which arrays are learned, for `vi.fit(trainable=...)`."""
        learned = jax.tree.map(lambda _: True, self)
        return eqx.tree_at(lambda h: (h.mean, h.scale), learned, (False, False))


def head(
    key: PRNGKeyArray,
    features: Float[Array, "n D"] | int,
    out: int = 1,
    *,
    width: int | None = 32,
    module: Any = None,
) -> Head:
    """A `Head` whose output is 0 before it is trained: log psi = 0, no twist at all.

    Args:
        key: draws the first weights of the hidden layer.
        features: examples, whose mean and scale standardize; or their number D, to leave them as
            they are.
        out: number of outputs K.
        width: units of one hidden layer (tanh); None for a linear head.
        module: a Flax NNX module of your own, [..., D] to [..., K], instead.
    """
    from flax import nnx

    dtype = jnp.result_type(float)
    size = features if isinstance(features, int) else features.shape[1]
    if module is None:
        options: dict[str, Any] = {"rngs": nnx.Rngs(key), "param_dtype": dtype}
        last = nnx.Linear(
            size if width is None else width, out, kernel_init=nnx.initializers.zeros, **options
        )
        module = last
        if width is not None:
            module = nnx.Sequential(nnx.Linear(size, width, **options), nnx.tanh, last)
    if isinstance(features, int):
        mean, scale = jnp.zeros(size, dtype), jnp.ones(size, dtype)
    else:
        mean, scale = features.mean(0).astype(dtype), features.std(0).astype(dtype) + 1e-6
    return Head(network(module), mean, scale)
