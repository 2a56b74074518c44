"""Normalizing flows as guides: stacked inverse autoregressive flows over all coordinates.

Kingma, Salimans, Jozefowicz, Chen, Sutskever and Welling (2016), "Improved variational inference
with inverse autoregressive flow", equation 10; networks and transforms are NumPyro's.
"""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.example_libraries import stax
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.distributions.flows import InverseAutoregressiveTransform
from numpyro.distributions.transforms import AffineTransform
from numpyro.nn import AutoregressiveNN

from ....ppl.distributions import third_party
from ....ppl.partial import Choices
from ....ppl.target import as_target
from .layout import Layout, layout
from .whole import Whole


class Flow(Whole):
    """See `flow`. `nets`: weights of one network a layer; then comes an affine map."""

    loc: Float[Array, " d"]
    log_scale: Float[Array, " d"]
    nets: tuple
    hidden: tuple[int, ...] = eqx.field(static=True)
    layout: Layout = eqx.field(static=True)

    def law(self) -> dist.Distribution:
        """The law of the coordinates, event [d]."""
        return self._law()

    @third_party
    def _law(self):
        size, parts = self.layout.size, []
        for i, weights in enumerate(self.nets):
            _, apply = _network(size, self.hidden, i)
            net = functools.partial(third_party(apply), weights)
            parts.append(InverseAutoregressiveTransform(net))
        parts.append(AffineTransform(self.loc, jnp.exp(self.log_scale)))
        base = dist.Normal(jnp.zeros_like(self.loc), 1.0).to_event(1)
        return dist.TransformedDistribution(base, parts)

    def draw(self, key):
        """See `Whole`; the path of the draw gives its density."""
        law: Any = self.law()
        z, between = third_party(law.sample_with_intermediates)(key)
        return z, third_party(law.log_prob)(z, between)

    def log_prob(self, z):
        """See `Whole`."""
        return third_party(self.law().log_prob)(z)


def flow(
    target: Any,
    *,
    key: PRNGKeyArray,
    layers: int = 2,
    hidden: tuple[int, ...] = (16,),
    init: Choices | None = None,
) -> Flow:
    """Inverse autoregressive flows, in alternating order, over the target's coordinates.

    A generative function with the target's free sites; a density at choices not its own costs d
    passes a layer. Starts near a standard normal around `init` (choices; else coordinates 0). Each
    of `hidden` is the width of a layer of the networks (made at least d wide); `key` draws their
    weights. The log density of the whole is kept at its first site: `project` has no other parts.

    Raises:
        ProgramError: as of `mean_field`, or when run with only some sites given.
        ValueError: the target has one coordinate, of which a flow is a normal.
    """
    place = layout(as_target(target))
    if place.size < 2:
        raise ValueError(
            "an autoregressive flow of one coordinate is a normal: use vi.guides.mean_field"
        )
    widths = tuple(max(width, place.size) for width in hidden)

    def weights(i):
        make, _ = _network(place.size, widths, i)
        _, net = third_party(make)(jax.random.fold_in(key, i), (place.size,))
        # Near the identity: small last layers.
        return (*net[:-1], jax.tree.map(lambda x: 0.01 * x, net[-1]))

    nets = tuple(jax.tree.map(lambda x: x.astype(float), weights(i)) for i in range(layers))
    loc = jnp.zeros((place.size,)) if init is None else place.position(init)
    return Flow(loc=loc, log_scale=jnp.zeros_like(loc), nets=nets, hidden=widths, layout=place)


@third_party
def _network(size: int, hidden: tuple[int, ...], i: int) -> Any:
    order = np.arange(size) if i % 2 == 0 else np.arange(size)[::-1].copy()
    return AutoregressiveNN(
        size, list(hidden), permutation=jnp.asarray(order), nonlinearity=stax.Elu
    )
