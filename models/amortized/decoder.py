"""The network inside a Distribution Transformer: component tokens, data tokens, no positions.

Whittle et al. (2025), section 3: self-attention over components, cross-attention to data, one
perceptron to read each kind of input and one to read a component out.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from .layers import layer_norm, linear


def perceptron(rngs, sizes, scale=None, last=None):
    """A linear map, SiLU, a linear map; inputs standardized by the first layer's first weights."""
    kind: Any = jnp.result_type(float)
    first = linear(sizes[0], sizes[1], rngs=rngs)
    if scale is not None:
        mean, sd = (jnp.asarray(x, kind) for x in scale)
        kernel = first.kernel[...] / jnp.maximum(sd, 1e-6)[:, None]
        first.kernel[...] = kernel
        bias: Any = first.bias
        bias[...] = -mean @ kernel
    init = {} if last is None else {"kernel_init": last}
    return nnx.Sequential(first, nnx.silu, linear(sizes[1], sizes[2], rngs=rngs, **init))


class Attention(nnx.Module):
    """Tokens ask a memory, by heads; the output starts at zero."""

    def __init__(self, rngs, width, heads):
        self.heads = heads
        self.query = linear(width, width, rngs=rngs)
        self.memory = linear(width, 2 * width, rngs=rngs)
        self.out = linear(width, width, rngs=rngs, kernel_init=nnx.initializers.zeros)

    def __call__(self, x, memory, mask=None):
        """Of tokens [q, width] and memory [n, width]; `mask` [n] says which of it counts."""
        n, width = memory.shape[0], x.shape[-1]
        q = self.query(x).reshape(-1, self.heads, width // self.heads)
        k, v = jnp.split(self.memory(memory).reshape(n, self.heads, -1), 2, axis=-1)
        scores = jnp.einsum("qhd,nhd->hqn", q, k) / math.sqrt(width // self.heads)
        if mask is not None:
            scores = jnp.where(mask[None, None], scores, -jnp.inf)
        mixed = jnp.einsum("hqn,nhd->qhd", jax.nn.softmax(scores), v)
        return self.out(mixed.reshape(-1, width))


class Layer(nnx.Module):
    """Components ask each other, then the data, then themselves; each with a norm before."""

    def __init__(self, rngs, width, heads):
        self.norms = nnx.List([layer_norm(width, rngs=rngs) for _ in range(3)])
        self.own = Attention(rngs, width, heads)
        self.cross = Attention(rngs, width, heads)
        self.perceptron = perceptron(rngs, (width, 4 * width, width), last=nnx.initializers.zeros)

    def __call__(self, x, memory, mask):
        """The tokens after this layer."""
        own, cross, wide = self.norms
        y = own(x)
        x = x + self.own(y, y)
        x = x + self.cross(cross(x), memory, mask)
        return x + self.perceptron(wide(x))


class Decoder(nnx.Module):
    """Embeddings, layers, un-embedding: features of one problem to numbers of each component.

    `latent` is None for mixture priors, else mean and sd of the latent coordinates.
    """

    def __init__(self, rngs, prior, sources, latent, d, components, width, layers, heads):
        kind: Any = jnp.result_type(float)
        self.components = None if latent is None else components
        self.width, self.d = width, d
        into = width if latent is None else components * width
        self.prior = perceptron(rngs, (len(prior[0]), 2 * width, into), prior)
        self.sources = nnx.Dict(
            {s: perceptron(rngs, (len(x[0]), 2 * width, width), x) for s, x in sources.items()}
        )
        self.nothing = nnx.Param(jax.random.normal(rngs.params(), (1, width), kind))
        self.layers = nnx.List([Layer(rngs, width, heads) for _ in range(layers)])
        self.norm = layer_norm(width, rngs=rngs)
        size = 1 + d + d * (d + 1) // 2
        self.out = perceptron(rngs, (width, 2 * width, size), last=nnx.initializers.zeros)
        # A parametric prior's components start spread out over what latents were seen.
        if latent is not None:
            mean, sd = (jnp.asarray(x, kind) for x in latent)
            spread = jax.random.normal(rngs.params(), (components, d), kind)
            spread = jnp.linspace(-1.5, 1.5, components, dtype=kind)[:, None] if d == 1 else spread
            start = jnp.zeros((components, size), kind)
            start = start.at[:, 1 : 1 + d].set(mean[None] + sd[None] * spread)
            scale = jnp.log(sd * components ** (-1.0 / d))
            self.start = nnx.Param(start.at[:, 1 + d : 1 + 2 * d].set(scale[None]))

    def __call__(self, tokens, rows, masks):
        """Numbers of each component before and after the layers: of the prior and posterior."""
        x = self.prior(tokens)
        x = x if self.components is None else x.reshape(self.components, self.width)
        memory = [self.nothing[...], *(self.sources[s](v) for s, v in rows.items())]
        mask = [jnp.ones((1,), bool), *(masks[s] for s in rows)]
        memory, mask = jnp.concatenate(memory), jnp.concatenate(mask)
        first = self._numbers(x)
        for layer in self.layers:
            x = layer(x, memory, mask)
        return first, self._numbers(x)

    def _numbers(self, x):
        numbers = self.out(self.norm(x))
        return numbers if self.components is None else numbers + self.start[...]
