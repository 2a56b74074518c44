"""Tables of labelled rows from random structural causal models: a prior for tabular data.

After Hollmann, Mueller, Eggensperger and Hutter (2023), "TabPFN", section 4: causes pass through a
random sparse network of noisy units, any of which are seen as features or as the label.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float

from ....ppl.context import Context
from ....ppl.program import Program, bind, program


class StructuralModel(eqx.Module):
    """Rows x [points, features] with labels y in {0, 1}, both read off the units of a random graph.

    `layers` layers of `units` units, after at most a fourth as many causes (few more often than
    many); each edge from one layer to the next is there with a probability of its own model, each
    unit adds its noise. The label is whether a unit is above a quantile of its rows. Features are
    standardized over the rows; a random number of them, at least `fewest`, are used and scaled by
    the root of features / used, the others are zero.
    """

    features: int = eqx.field(static=True, default=10)
    fewest: int = eqx.field(static=True, default=1)
    layers: int = eqx.field(static=True, default=3)
    units: int = eqx.field(static=True, default=16)

    def program(self, points: int) -> Program:
        """Sites of the graph, `x` [points, features] and `y` [points], both determined by them."""
        if self.features > self.units * self.layers - 1:
            raise ValueError(
                f"{self.layers} layers of {self.units} units have no {self.features} features and "
                "a label: give more units"
            )
        return bind(program(_sample(points)), self)


def _sample(points: int) -> Callable:
    def structural_model(ctx: Context, family: StructuralModel):
        units, layers = family.units, family.layers
        kept = ctx.sample("kept", dist.Uniform(0.2, 1.0))
        noise = ctx.sample("noise", dist.LogNormal(-3.5, 1.0))
        smooth = ctx.sample("smooth", dist.BernoulliProbs(0.5))
        strength = ctx.sample("strength", dist.LogNormal(0.3, 0.5))
        # Few causes, more often than many: else 30 labels tell nothing of the next.
        roots = jnp.exp(ctx.sample("roots", dist.Uniform(0.0, jnp.log(units / 4 + 1))))
        active = (jnp.arange(units, dtype=roots.dtype) < jnp.floor(roots)).astype(roots.dtype)
        h = ctx.sample("causes", dist.Normal(jnp.zeros((points, units)), 1.0)) * active[None]
        fan = jnp.maximum(kept * jnp.sum(active), 1.0)
        seen = []
        for i in range(layers):
            shape = (units, units)
            weights = ctx.sample(f"weights{i}", dist.Normal(jnp.zeros(shape), 1.0))
            edges = ctx.sample(f"edges{i}", dist.BernoulliProbs(jnp.full(shape, kept)))
            bias = ctx.sample(f"bias{i}", dist.Normal(jnp.zeros(units), 1.0))
            own = ctx.sample(f"noise{i}", dist.Normal(jnp.zeros((points, units)), 1.0))
            weights = weights * edges.astype(weights.dtype) * strength / fan**0.5
            z = h @ weights + bias[None]
            h = jnp.where(smooth > 0, jnp.tanh(z), jax.nn.relu(z)) + noise * own
            fan = kept * units
            seen.append(h)
        nodes = _standardized(jnp.concatenate(seen, axis=-1))
        order = ctx.sample("order", dist.Uniform(jnp.zeros(nodes.shape[1]), 1.0))
        order = jnp.argsort(order)
        used = ctx.sample("used", dist.DiscreteUniform(family.fewest, family.features))
        there = jnp.arange(family.features) < used
        x = nodes[:, order[1 : family.features + 1]] * there[None].astype(h.dtype)
        x = ctx.sample(
            "x", dist.Delta(x * (family.features / used.astype(h.dtype)) ** 0.5, event_dim=2)
        )
        share = ctx.sample("share", dist.Uniform(0.25, 0.75))
        label = nodes[:, order[0]]
        return ctx.sample("y", dist.Delta(_above(label, share).astype(int), event_dim=1))

    return structural_model


def _standardized(h: Float[Array, "n u"]) -> Float[Array, "n u"]:
    """Columns of mean 0 and variance 1; 0 where a unit never changes."""
    centred = h - jnp.mean(h, axis=0, keepdims=True)
    return centred / jnp.sqrt(jnp.mean(centred**2, axis=0, keepdims=True) + 1e-6)


def _above(label: Float[Array, "n"], share: Float[Array, ""]) -> Bool[Array, "n"]:
    """Whether a row's label is among the highest `share` of all."""
    return label > jnp.quantile(label, 1 - share)
