"""Encoders: what was observed, as one vector; plain, of sets, of sequences.

Sets: Zaheer, Kottur, Ravanbakhsh, Poczos, Salakhutdinov and Smola (2017), "Deep sets", theorem 2;
sequences: Cho et al. (2014), "Learning phrase representations using RNN encoder-decoder",
section 2.3 (gated recurrent units).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from ..network import Network, network
from .layers import linear

Features = tuple[tuple[Float[Array, "..."], Float[Array, "..."]], ...]
"""Of every observed site: numbers [*instances, features], 0 where unknown; and 1 where known."""

Shapes = tuple[tuple[tuple[int, ...], int], ...]
"""Of every observed site: instances, and features of one instance."""


class Encoder(eqx.Module):
    """From features of the observed sites to a vector of length `size`."""

    net: Network
    size: int = eqx.field(static=True)

    def __call__(self, features: Features) -> Float[Array, " size"]:
        """The vector."""
        return self.net(features)


def plain_encoder(
    key: PRNGKeyArray, shapes: Shapes, *, outputs: int = 32, width: int = 64, depth: int = 2
) -> Encoder:
    """All features in a row and, behind them, what a perceptron makes of them (`outputs` numbers).

    For sites whose entries each mean something of their own, for example summaries.
    """
    return Encoder(network(_Plain(key, shapes, outputs, width, depth)), outputs + _flat(shapes))


def set_encoder(
    key: PRNGKeyArray, shapes: Shapes, *, outputs: int = 32, width: int = 64, depth: int = 2
) -> Encoder:
    """Does not depend on the order of the instances (of `ppl.vmap`), nor on unknown ones.

    Sites with equally many instances are one set, instance i of each its element i; a perceptron
    reads every element, and another the mean over the known ones, their number, and the features of
    sites without instances.

    Raises:
        ValueError: no site has instances.
    """
    if not _lengths(shapes):
        raise ValueError(
            "a set encoder reads sites with instances, made by ppl.vmap or a loop, and no observed "
            "site has any: use plain_encoder"
        )
    net = _Instances(key, shapes, outputs, width, depth, ordered=False)
    return Encoder(network(net), outputs)


def sequence_encoder(
    key: PRNGKeyArray, shapes: Shapes, *, outputs: int = 32, width: int = 64, depth: int = 2
) -> Encoder:
    """Reads instances in order by gated recurrent units; unknown ones are passed over.

    Otherwise as `set_encoder`.
    """
    if not _lengths(shapes):
        raise ValueError(
            "a sequence encoder reads sites with instances, made by ppl.scan, a StateSpace or "
            "ppl.vmap, and no observed site has any: use plain_encoder"
        )
    net = _Instances(key, shapes, outputs, width, depth, ordered=True)
    return Encoder(network(net), outputs)


def perceptron(
    rngs: Any, inputs: int, width: int, depth: int, outputs: int, **options: Any
) -> nnx.Sequential:
    """`depth` hidden layers; `options` are of the last layer."""
    sizes = [inputs] + [width] * depth
    layers: list[Any] = []
    for n, m in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [linear(n, m, rngs=rngs), nnx.gelu]
    layers.append(linear(sizes[-1], outputs, rngs=rngs, **options))
    return nnx.Sequential(*layers)


class _Plain(nnx.Module):
    def __init__(self, key, shapes, outputs, width, depth):
        self.net = perceptron(nnx.Rngs(key), _flat(shapes), width, depth, outputs)

    def __call__(self, features):
        flat = jnp.concatenate([jnp.ravel(x) for pair in features for x in pair])
        return jnp.concatenate([flat, self.net(flat)])


class _Instances(nnx.Module):
    """Elements of each length read one by one or in order, then everything by a perceptron."""

    def __init__(self, key, shapes, outputs, width, depth, ordered):
        rngs = nnx.Rngs(key)
        dtype: Any = jnp.result_type(float)
        self.lengths, self.ordered, self.width = _lengths(shapes), ordered, width
        self.tokens, self.cells = nnx.List(), nnx.List()
        for n in self.lengths:
            inputs = sum(_one(shape) + 1 for shape in shapes if shape[0][:1] == (n,))
            self.tokens.append(perceptron(rngs, inputs, width, depth, width))
            if ordered:
                cell = nnx.GRUCell(width, width, rngs=rngs, dtype=dtype, param_dtype=dtype)
                self.cells.append(cell)
        rest = sum(_one(shape) + 1 for shape in shapes if not shape[0])
        self.net = perceptron(rngs, len(self.lengths) * (width + 1) + rest, width, depth, outputs)

    def __call__(self, features):
        read = []
        for i, n in enumerate(self.lengths):
            parts = [pair for pair in features if pair[1].shape[:1] == (n,)]
            rows = jnp.concatenate([x.reshape(n, -1) for pair in parts for x in pair], axis=1)
            flags = jnp.concatenate([known.reshape(n, -1) for _, known in parts], axis=1)
            known = jnp.max(flags, axis=1)[:, None]
            tokens = self.tokens[i](rows)
            count = jnp.sum(known)
            if self.ordered:
                vector = self._read(self.cells[i], tokens, known)
            else:
                vector = jnp.sum(tokens * known, axis=0) / jnp.maximum(count, 1)
            read += [vector, jnp.log1p(count)[None] - 0.5 * jnp.log1p(jnp.asarray(n, count.dtype))]
        read += [jnp.ravel(x) for pair in features if not pair[1].ndim for x in pair]
        return self.net(jnp.concatenate(read))

    def _read(self, cell, tokens, known):
        graph, variables = nnx.split(cell)

        def step(state, token):
            x, known = token
            new, _ = nnx.merge(graph, variables)(state, x)
            return jnp.where(known > 0, new, state), None

        start = jnp.zeros((self.width,), tokens.dtype)
        return jax.lax.scan(step, start, (tokens, known))[0]


def _lengths(shapes: Shapes) -> tuple[int, ...]:
    return tuple(sorted({instances[0] for instances, _ in shapes if instances}))


def _one(shape: tuple[tuple[int, ...], int]) -> int:
    """Features of one element: further instance axes count as features."""
    instances, features = shape
    n = 1
    for more in instances[1:]:
        n *= more
    return n * features + (n - 1)


def _flat(shapes: Shapes) -> int:
    total = 0
    for instances, features in shapes:
        n = 1
        for size in instances:
            n *= size
        total += n * (features + 1)
    return total
