"""A transformer on a set: context attends to context, queries attend to context, no positions.

Mueller et al. (2022), "Transformers can do Bayesian inference", section 4: the output is invariant
under permutations of the context, and a query's does not depend on the other queries. Keys and
values of the context are computed once. A learned token that is always there stands for "nothing
seen" (a context of size 0) and tells, by its share of the attention, how much was.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from .layers import layer_norm, linear

Cache = tuple[tuple[Float[Array, "*batch seen heads k"], Float[Array, "*batch seen heads k"]], ...]
"""Keys and values of the context in each layer."""


class Features(nnx.Module):
    """Inputs as waves of learned frequencies, from which attention makes kernels; then linear.

    Rahimi and Recht (2007), "Random features for large-scale kernel machines": products of waves
    are functions of differences of the inputs.
    """

    def __init__(self, inputs: int, width: int, *, waves: int = 32, rngs: nnx.Rngs):
        spread = nnx.initializers.normal(2.0 / inputs**0.5)
        self.phase = linear(inputs, waves, kernel_init=spread, rngs=rngs)
        self.out = linear(inputs + 2 * waves, width, rngs=rngs)

    def __call__(self, x: Float[Array, "*batch n d"]) -> Float[Array, "*batch n width"]:
        """Standardized inputs to tokens."""
        phase = self.phase(x)
        return self.out(jnp.concatenate([x, jnp.sin(phase), jnp.cos(phase)], axis=-1))


class Block(nnx.Module):
    """Attention to the context and a perceptron, normalized before, added to what comes in."""

    def __init__(self, width: int, heads: int, hidden: int, *, rngs: nnx.Rngs):
        zeros = nnx.initializers.zeros_init()
        self.heads = heads
        self.before = layer_norm(width, rngs=rngs)
        self.query = linear(width, width, rngs=rngs)
        self.key_value = linear(width, 2 * width, rngs=rngs)
        self.mix = linear(width, width, kernel_init=zeros, rngs=rngs)
        self.between = layer_norm(width, rngs=rngs)
        self.up = linear(width, hidden, rngs=rngs)
        self.down = linear(hidden, width, kernel_init=zeros, rngs=rngs)

    def remember(self, context: Array) -> tuple[Array, Array]:
        """Keys and values of context tokens."""
        both = self.key_value(self.before(context))
        key, value = jnp.split(both, 2, axis=-1)
        return self._split(key), self._split(value)

    def __call__(self, tokens: Array, key: Array, value: Array, mask: Array) -> Array:
        """The tokens after this layer."""
        query = self._split(self.query(self.before(tokens)))
        scores = jnp.einsum("...qhk,...nhk->...hqn", query, key) / query.shape[-1] ** 0.5
        scores = jnp.where(mask[..., None, None, :], scores, -jnp.inf)
        seen = jnp.einsum("...hqn,...nhk->...qhk", jax.nn.softmax(scores), value)
        tokens = tokens + self.mix(seen.reshape(tokens.shape))
        return tokens + self.down(jax.nn.relu(self.up(self.between(tokens))))

    def _split(self, x: Array) -> Array:
        return x.reshape(*x.shape[:-1], self.heads, x.shape[-1] // self.heads)


class SetTransformer(nnx.Module):
    """Context tokens to a cache, queries and a cache to outputs.

    - `inputs`, `outputs`: numbers of features of x and y.
    - `width`, `layers`, `heads`, `hidden`: of the transformer; `hidden` is 2 `width` by default.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        width: int = 64,
        layers: int = 4,
        heads: int = 4,
        hidden: int | None = None,
        waves: int = 32,
        rngs: nnx.Rngs,
    ):
        if width % heads:
            raise ValueError(f"a width of {width} cannot be split among {heads} heads")
        hidden = 2 * width if hidden is None else hidden
        self.x = Features(inputs, width, waves=waves, rngs=rngs)
        self.y = linear(outputs, width, rngs=rngs)
        self.nothing = nnx.Param(0.02 * jax.random.normal(rngs.params(), (width,)))
        self.asked = nnx.Param(0.02 * jax.random.normal(rngs.params(), (width,)))
        self.blocks: Any = nnx.List([Block(width, heads, hidden, rngs=rngs) for _ in range(layers)])
        self.after = layer_norm(width, rngs=rngs)

    def remember(
        self,
        x: Float[Array, "*batch n d"],
        y: Float[Array, "*batch n c"],
        mask: Bool[Array, "*batch n"],
    ) -> Cache:
        """Keys and values of the points where `mask`; what is elsewhere does not matter."""
        x, y = (jnp.where(mask[..., None], v, 0.0) for v in (x, y))
        tokens = self.x(x) + self.y(y)
        nothing = jnp.broadcast_to(self.nothing[...], (*tokens.shape[:-2], 1, tokens.shape[-1]))
        tokens = jnp.concatenate([nothing, tokens], axis=-2)
        mask, cache = with_nothing(mask), []
        for i, block in enumerate(self.blocks):
            key, value = block.remember(tokens)
            cache.append((key, value))
            if i + 1 < len(self.blocks):
                tokens = block(tokens, key, value, mask)
        return tuple(cache)

    def ask(
        self, queries: Float[Array, "*batch m d"], cache: Cache, mask: Bool[Array, "*batch n"]
    ) -> Float[Array, "*batch m width"]:
        """What the network knows at each query, all in one pass."""
        asked = self.x(queries)
        tokens = asked + jnp.broadcast_to(self.asked[...], asked.shape)
        mask = with_nothing(mask)
        for block, (key, value) in zip(self.blocks, cache, strict=True):
            tokens = block(tokens, key, value, mask)
        return self.after(tokens)


def with_nothing(mask: Bool[Array, "*batch n"]) -> Bool[Array, "*batch n+1"]:
    """The mask with the token that is always there."""
    return jnp.concatenate([jnp.ones((*mask.shape[:-1], 1), bool), mask], axis=-1)
