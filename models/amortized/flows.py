"""Conditional normalizing flows: affine maps and rational-quadratic splines, one after the other.

Durkan, Bekasov, Murray and Papamakarios (2019), "Neural spline flows", equations 4 to 8; each
coordinate's map given the ones before it: Papamakarios, Pavlakou and Murray (2017), "Masked
autoregressive flow for density estimation", section 3; the masks of the networks: Germain, Gregor,
Murray and Larochelle (2015), "MADE", equation 8.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from ..network import Network, network
from .density import Density, bounded
from .layers import linear

LEAST = 1e-3
"""Least width and height of a bin, as a part of the box, and least slope at a knot."""


class SplineFlow(Density):
    """See `spline_flow`. `nets`: the networks of all layers, stacked along a first axis."""

    nets: Network
    size: int = eqx.field(static=True)
    layers: int = eqx.field(static=True)
    passes: int = eqx.field(static=True)
    bins: int = eqx.field(static=True)
    box: float = eqx.field(static=True)

    def forward(
        self, z: Float[Array, " d"], context: Float[Array, " c"]
    ) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """The noise e in R^d that gives z, and log |de/dz|, nats; one pass a layer."""

        def layer(carry, net):
            z, log_volume = carry
            shift, log_scale, shape = self._parameters(net, z, context)
            z, slopes = spline((z - shift) * jnp.exp(-log_scale), shape, self.box)
            return (z[::-1], log_volume + jnp.sum(slopes - log_scale)), None

        (z, log_volume), _ = jax.lax.scan(layer, (z, jnp.zeros((), z.dtype)), self.nets)
        return z, log_volume

    def inverse(self, noise: Float[Array, " d"], context: Float[Array, " c"]) -> Float[Array, " d"]:
        """The z that `forward` takes to this noise; `passes` passes a layer."""

        def layer(out, net):
            out = out[::-1]

            def one(z, _):
                shift, log_scale, shape = self._parameters(net, z, context)
                return spline_inverse(out, shape, self.box) * jnp.exp(log_scale) + shift, None

            # After pass b the first b blocks of coordinates are right.
            return jax.lax.scan(one, jnp.zeros_like(out), length=self.passes)[0], None

        return jax.lax.scan(layer, noise, self.nets, reverse=True)[0]

    def log_prob(self, z, context):
        """See `Density`."""
        noise, log_volume = self.forward(z, context)
        return log_volume - 0.5 * jnp.sum(noise**2) - 0.5 * self.size * math.log(2 * math.pi)

    def sample(self, key, context):
        """See `Density`; differentiable in everything."""
        return self.inverse(jax.random.normal(key, (self.size,), context.dtype), context)

    def _parameters(self, net: Network, z: Array, context: Array) -> tuple[Array, Array, Array]:
        out = net(z, context).reshape(self.size, -1)
        return out[:, 0], bounded(out[:, 1]), out[:, 2:]


def spline_flow(
    key: PRNGKeyArray,
    size: int,
    context: int,
    *,
    layers: int = 5,
    width: int = 64,
    depth: int = 1,
    bins: int = 8,
    box: float = 4.0,
    passes: int | None = None,
) -> SplineFlow:
    """A flow from z in R^d to standard normal noise, given a vector of length `context`.

    A layer maps each coordinate by an affine map and a monotone spline on [-box, box], the
    identity beyond, both given by a masked network of the coordinates before it and the context;
    then the order is turned round. It starts as the identity. Its layers are one scanned program:
    compilation does not grow with them.

    Args:
        key: of the networks' weights.
        size: d, at least 1.
        context: length of the vector.
        layers: how many.
        width: of the networks' hidden layers.
        depth: number of their residual blocks.
        bins: of the splines.
        box: half the side of the box; the coordinates should have a spread of about 1.
        passes: into how many blocks the coordinates are cut. `size`, the default, makes each depend
            on all before it (autoregressive); 2 makes coupling layers. A density takes one pass a
            layer, a draw so many.
    """
    passes = size if passes is None else passes
    if size < 1 or not 1 <= passes <= size:
        raise ValueError(
            f"a flow of {size} coordinates in {passes} blocks: give at least one coordinate, and "
            "between 1 and that many passes"
        )

    def make(key):
        net = _Conditioner(key, size, context, width, depth, 3 * bins + 1, passes)
        return network(net)

    nets = eqx.filter_vmap(make)(jax.random.split(key, layers))
    return SplineFlow(nets, size, layers, passes, bins, box)


def spline(
    x: Float[Array, " d"], shape: Float[Array, "d p"], box: float
) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
    """Monotone splines of every coordinate, and the logs of their slopes.

    `shape` has K logits of widths, K of heights and K - 1 raw slopes; zeros are the identity.
    """
    inside = jnp.abs(x) < box
    safe = jnp.where(inside, x, jnp.zeros_like(x))
    left, width, low, height, d0, d1 = _bin(safe, shape, box, 0)
    slope, t = height / width, (safe - left) / width
    between = t * (1 - t)
    bottom = slope + (d1 + d0 - 2 * slope) * between
    y = low + height * (slope * t**2 + d0 * between) / bottom
    top = d1 * t**2 + 2 * slope * between + d0 * (1 - t) ** 2
    log_slope = 2 * jnp.log(slope) + jnp.log(top) - 2 * jnp.log(bottom)
    return jnp.where(inside, y, x), jnp.where(inside, log_slope, jnp.zeros_like(x))


def spline_inverse(
    y: Float[Array, " d"], shape: Float[Array, "d p"], box: float
) -> Float[Array, " d"]:
    """The x that `spline` takes to y: the root of a quadratic, in its stable form."""
    inside = jnp.abs(y) < box
    safe = jnp.where(inside, y, jnp.zeros_like(y))
    left, width, low, height, d0, d1 = _bin(safe, shape, box, 1)
    slope, rest = height / width, safe - low
    common = rest * (d1 + d0 - 2 * slope)
    a, b, c = height * (slope - d0) + common, height * d0 - common, -slope * rest
    root = jnp.sqrt(jnp.maximum(b**2 - 4 * a * c, 0))
    return jnp.where(inside, left + width * (2 * c / (-b - root)), y)


def _bin(x: Array, shape: Array, box: float, axis: int) -> tuple[Array, ...]:
    """Of the bin that x [d] is in, by widths (axis 0) or heights (1): both edges, slopes."""
    bins = (shape.shape[-1] + 1) // 3
    sides = shape[:, : 2 * bins].reshape(-1, 2, bins)
    sides = 2 * box * (LEAST + (1 - LEAST * bins) * jax.nn.softmax(sides, axis=-1))
    ends = jnp.cumsum(sides, axis=-1) - box
    starts = ends - sides
    # softplus(one) = 1 - LEAST: raw zeros are slopes of 1, as outside the box.
    one = math.log(math.expm1(1 - LEAST))
    slopes = LEAST + jax.nn.softplus(shape[:, 2 * bins :] + one)
    slopes = jnp.pad(slopes, [(0, 0), (1, 1)], constant_values=1.0)
    index = jnp.sum(x[:, None] >= ends[:, axis, :-1], axis=-1)
    chosen = index[:, None] == jnp.arange(bins)[None, :]

    def pick(values):
        return jnp.sum(jnp.where(chosen, values, jnp.zeros_like(values)), axis=-1)

    left, low = pick(starts[:, 0]), pick(starts[:, 1])
    width, height = pick(sides[:, 0]), pick(sides[:, 1])
    return left, width, low, height, pick(slopes[:, :-1]), pick(slopes[:, 1:])


class _Conditioner(nnx.Module):
    """`outputs` numbers for every coordinate, from the coordinates of blocks before and a context.

    A unit of degree g depends on coordinates of blocks up to g; degree -1 on the context alone.
    """

    def __init__(self, key, size, context, width, depth, outputs, passes):
        rngs = nnx.Rngs(key)
        blocks = tuple(int(b) for b in np.arange(size) * passes // size)
        hidden = tuple(int(g) - 1 for g in np.arange(width) * passes // width)
        out = tuple(b - 1 for b in np.repeat(blocks, outputs).tolist())
        zero = nnx.initializers.zeros_init()
        self.first = _Masked(blocks, hidden, rngs=rngs)
        self.given = linear(context, width, rngs=rngs)
        self.blocks = nnx.List(_Block(hidden, context, rngs) for _ in range(depth))
        self.last = _Masked(hidden, out, kernel_init=zero, rngs=rngs)
        self.skip = _Masked(blocks, out, kernel_init=zero, use_bias=False, rngs=rngs)
        self.skip_given = linear(context, len(out), kernel_init=zero, use_bias=False, rngs=rngs)

    def __call__(self, z, context):
        h = self.first(z) + self.given(context)
        for block in self.blocks:
            h = h + block(h, context)
        return self.last(nnx.gelu(h)) + self.skip(z) + self.skip_given(context)


class _Block(nnx.Module):
    """What is added to the hidden units."""

    def __init__(self, hidden, context, rngs):
        zero = nnx.initializers.zeros_init()
        self.inner = _Masked(hidden, hidden, rngs=rngs)
        self.given = linear(context, len(hidden), use_bias=False, rngs=rngs)
        self.outer = _Masked(hidden, hidden, kernel_init=zero, rngs=rngs)

    def __call__(self, h, context):
        return self.outer(nnx.gelu(self.inner(nnx.gelu(h)) + self.given(context)))


class _Masked(nnx.Linear):
    """A linear layer in which a unit sees the inputs of degrees up to its own."""

    def __init__(
        self, degrees: tuple[int, ...], own: tuple[int, ...], *, rngs: nnx.Rngs, **options: Any
    ):
        dtype: Any = jnp.result_type(float)
        super().__init__(len(degrees), len(own), param_dtype=dtype, rngs=rngs, **options)
        self.degrees, self.own = degrees, own

    def __call__(self, inputs):
        mask = np.asarray(self.degrees)[:, None] <= np.asarray(self.own)[None, :]
        out = inputs @ jnp.where(mask, self.kernel[...], jnp.zeros((), self.kernel[...].dtype))
        return out if self.bias is None else out + self.bias[...]
