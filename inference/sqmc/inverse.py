"""Programs driven by a point of the unit cube: each draw inverts a distribution function.

Rosenblatt (1952): coordinate after coordinate, in the order in which the program reaches its
sites. A program is run by a context of its own, put in by replacing the program.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import ndtri
from jaxtyping import Array, Float

from ...ppl import distributions
from ...ppl.context import Context
from ...ppl.errors import ProgramError
from ...ppl.estimated import EstimatedDistribution
from ...ppl.generative import PLAIN, GenerativeFunction
from ...ppl.inverse_cdf import inverse_cdf
from ...ppl.partial import where_leading
from ...ppl.program import Program


class Cursor:
    """The coordinates of one point, taken one after the other; None only counts them."""

    def __init__(self, point: Float[Array, " d"] | None):
        self.point, self.taken = point, 0

    def take(self, shape: tuple[int, ...]) -> Array:
        """The next coordinates, in this shape."""
        size = math.prod(shape)
        start, self.taken = self.taken, self.taken + size
        if self.point is None:
            return jnp.full(shape, 0.5)
        return self.point[start : self.taken].reshape(shape)


class Pointed(GenerativeFunction):
    """A program whose draws are a function of a point [d] of the unit cube."""

    program: GenerativeFunction
    point: Float[Array, " d"]

    def run(self, key, given, args, request=PLAIN):
        """See `GenerativeFunction.run`."""
        return _run(self.program, Cursor(self.point), given, args, request)


class Counted(GenerativeFunction):
    """A program that counts the coordinates that a run would take."""

    program: GenerativeFunction
    cursor: Cursor = eqx.field(static=True)

    def run(self, key, given, args, request=PLAIN):
        """See `GenerativeFunction.run`."""
        self.cursor.taken = 0
        return _run(self.program, self.cursor, given, args, request)


def _run(program, cursor, given, args, request):
    if not isinstance(program, Program):
        raise ProgramError(
            f"SQMC draws by inverting distribution functions, site after site, and a "
            f"{type(program).__name__} has its sites inside a combinator: write them in the "
            "program itself, one site with a batch of components instead of ppl.vmap, or use SMC"
        )
    context = _PointContext(cursor, given, request)
    return context.finish(jax.tree.map(_strong, program(context, *args)))


class _PointContext(Context):
    """Draws by inverse distribution functions."""

    def __init__(self, cursor, given, request):
        super().__init__(None, given, request)
        self._cursor = cursor

    def sample(self, name, distribution):
        if isinstance(distribution, EstimatedDistribution):
            raise ProgramError(
                f"{self._at(name)} is drawn by an algorithm (marginal or normalize), which has no "
                "inverse distribution function: use SMC"
            )
        return super().sample(name, distribution)

    def call(self, name, program, *args):
        return super().call(name, _Called(program, self._cursor), *args)

    def _exact(self, name, key, distribution, given):
        if given is not None and given.mask is None:
            return super()._exact(name, None, distribution, given)
        try:
            drawn = inverse(distribution, self._cursor.take)
        except NotImplementedError as error:
            raise ProgramError(
                f"{self._at(name)} is a {type(distribution).__name__}, whose inverse distribution "
                "function NumPyro does not have: write it as a function of sites that have one "
                "(Normal, Uniform, Exponential, Token, ...), or use SMC"
            ) from error
        if given is None:
            return drawn, distributions.log_density(distribution, drawn, check=False)
        value = self._shaped(name, distribution, given.value)
        value = where_leading(given.mask, value, drawn)
        return value, distributions.log_density(distribution, value, check=True)


class _Called(GenerativeFunction):
    """A program called by one that is driven by a point: it goes on with the same."""

    program: GenerativeFunction
    cursor: Cursor = eqx.field(static=True)

    def run(self, key, given, args, request=PLAIN):
        """See `GenerativeFunction.run`."""
        return _run(self.program, self.cursor, given, args, request)


def _strong(x):
    x = jnp.asarray(x)
    return jax.lax.convert_element_type(x, x.dtype)


@distributions.third_party
def inverse(distribution: Any, take: Any) -> Array:
    """The value that a distribution's inverse distribution function has at the next coordinates."""
    like = distributions.drawn_like(distribution)
    d = distribution
    while isinstance(d, (dist.Independent, dist.ExpandedDistribution, dist.MaskedDistribution)):
        d = d.base_dist
    if isinstance(d, dist.Delta):
        return jnp.broadcast_to(jnp.asarray(d.v), like.shape)
    u = take(like.shape)
    if isinstance(d, dist.MultivariateNormal):
        noise = ndtri(u)[..., None]
        loc, factor = jnp.asarray(d.loc), jnp.asarray(d.scale_tril)
        return (loc + (factor @ noise)[..., 0]).astype(like.dtype)
    table = _weights(d)
    if table is not None:
        weights = jnp.broadcast_to(table, (*like.shape, table.shape[-1]))
        return inverse_cdf(weights, u.astype(weights.dtype)).astype(like.dtype)
    return jnp.broadcast_to(d.icdf(u), like.shape).astype(like.dtype)


def _weights(d: Any) -> Any:
    """Weights of the values 0, 1, ... of a finite distribution."""
    if isinstance(d, distributions.Token):
        logits = d._allowed()
        top = jnp.max(logits, axis=-1, keepdims=True)
        return jnp.exp(logits - jnp.where(jnp.isneginf(top), 0, top))
    if isinstance(d, (dist.CategoricalLogits, dist.CategoricalProbs)):
        return jnp.asarray(d.probs)
    if isinstance(d, (dist.BernoulliLogits, dist.BernoulliProbs)):
        rate = jnp.asarray(d.probs)
        return jnp.stack([1 - rate, rate], axis=-1)
    return None
