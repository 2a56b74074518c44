"""A causal transformer over sequences of vectors, for comparison with recurrences.

Vaswani et al. (2017), "Attention is all you need", pre-normalized; its state, the past keys and
values, grows with the sequence.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from .layers import layer_norm, linear


class CausalTransformer(nnx.Module):
    """[..., t, inputs] to [..., t, outputs], output t from inputs up to t; t at most `length`.

    Args:
        inputs: numbers at each step.
        outputs: numbers that it gives at each step.
        length: the longest sequence; positions are learned.
        width: of the residual stream, a multiple of `heads`.
        depth: blocks of attention and a perceptron of twice the width.
        heads: of attention.
        rngs: of the initial parameters.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        length: int,
        width: int = 32,
        depth: int = 2,
        heads: int = 4,
        *,
        rngs: nnx.Rngs,
    ):
        if width % heads:
            raise ValueError(f"width={width} is no multiple of heads={heads}")
        self.length = length
        self.enter = linear(inputs, width, rngs=rngs)
        self.position = nnx.Param(0.02 * jax.random.normal(rngs(), (length, width)))
        self.blocks = nnx.List([_Block(width, heads, rngs) for _ in range(depth)])
        self.norm = layer_norm(width, rngs=rngs)
        self.leave = linear(width, outputs, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, u: Float[Array, "*b t inputs"]) -> Float[Array, "*b t outputs"]:
        """All outputs.

        Raises:
            ValueError: a sequence longer than `length`.
        """
        if u.shape[-2] > self.length:
            raise ValueError(
                f"a sequence of {u.shape[-2]}, but positions were made for {self.length}: give the "
                "last of it, or make the network longer and train it so"
            )
        h = self.enter(u)
        h = h + jnp.broadcast_to(self.position[: u.shape[-2]], h.shape)
        for block in self.blocks:
            h = block(h)
        return self.leave(self.norm(h))


class _Block(nnx.Module):
    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.heads = heads
        self.first, self.second = layer_norm(width, rngs=rngs), layer_norm(width, rngs=rngs)
        self.qkv = linear(width, 3 * width, rngs=rngs)
        zeros = nnx.initializers.zeros
        self.out = linear(width, width, kernel_init=zeros, rngs=rngs)
        self.up = linear(width, 2 * width, rngs=rngs)
        self.down = linear(2 * width, width, kernel_init=zeros, rngs=rngs)

    def __call__(self, h):
        parts = jnp.split(self.qkv(self.first(h)), 3, axis=-1)
        q, k, v = (x.reshape(*x.shape[:-1], self.heads, -1) for x in parts)
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        h = h + self.out(mixed.reshape(h.shape))
        return h + self.down(jax.nn.gelu(self.up(self.second(h))))
