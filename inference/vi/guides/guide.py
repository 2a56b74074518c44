"""Automatic guides: a normal law over a target's coordinates, as a program with its sites."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from ....ppl.code import Code
from ....ppl.distributions import third_party
from ....ppl.errors import ProgramError
from ....ppl.partial import Choices
from ....ppl.program import Program
from ....ppl.target import as_target
from .laws import FullRank, Law, LowRank, MeanField
from .layout import Layout, Site, layout


class AutoGuide(eqx.Module):
    """The first bound argument of an automatic guide: its law, or a network that gives one."""

    law: Any
    layout: Layout = eqx.field(static=True)

    def at(self, args: tuple) -> Law:
        """The law for these arguments of the guide."""
        if isinstance(self.law, Law):
            return self.law
        law = self.law(*args)
        if not isinstance(law, Law) or law.loc.size != self.layout.size:
            got = type(law).__name__
            got = f"{got} of {law.loc.size} coordinates" if isinstance(law, Law) else got
            raise ProgramError(
                f"an amortized guide's network returned a {got}; the target has "
                f"{self.layout.size}: return vi.guides.MeanField(loc, log_scale) or another law "
                "of that size"
            )
        return law


class _Part(eqx.Module):
    law: Law
    sites: tuple[Site, ...] = eqx.field(static=True)
    depth: int = eqx.field(static=True)


def guided(law: Any, layout: Layout) -> Program:
    """The guide as a program; its arguments are the target's, read by a network only."""
    return Program(Code(_guide), (AutoGuide(law, layout),))


def _guide(ctx, guide, *args):
    law = guide.at(args)
    _sites(ctx, _Part(law, guide.layout.sites, 0), law.begin())
    return {}


def _sites(ctx, part, known):
    groups: dict[str, list[Site]] = {}
    for site in part.sites:
        groups.setdefault(site.path[part.depth], []).append(site)
    for name, sites in groups.items():
        if len(sites[0].path) > part.depth + 1:
            inner = _Part(part.law, tuple(sites), part.depth + 1)
            known = ctx.call(name, Program(Code(_sites), (inner,)), known)
            continue
        (site,) = sites
        base = third_party(part.law.conditional)(known, site.start, site.size)
        value = ctx.sample(name, third_party(dist.TransformedDistribution)(base, site.transform))
        z = site.transform._inverse(value)
        known = third_party(part.law.after)(known, site.start, z)
    return known


def mean_field(target: Any, *, scale: ArrayLike = 0.1, init: Choices | None = None) -> Program:
    """Independent normals over the coordinates of the target's free sites.

    The coordinates are NumPyro's: `biject_to(support)` of each site. A guide starts at `init`
    (choices), or at coordinates 0, with standard deviations `scale`. Use it in objectives, as
    `Proposal(init=guide)` and in `ppl.marginal`; its arrays, free of constraints, are its leaves.

    Raises:
        ProgramError: a free site is discrete, happens only sometimes, is fixed in part, or has a
            support that depends on other sites.
    """
    place, loc, log_scale = _start(target, scale, init)
    return guided(MeanField(loc, log_scale), place)


def full_rank(target: Any, *, scale: ArrayLike = 0.1, init: Choices | None = None) -> Program:
    """A normal with any covariance, d (d + 3) / 2 parameters; see `mean_field`."""
    place, loc, log_scale = _start(target, scale, init)
    return guided(FullRank(loc, log_scale, jnp.zeros((loc.size, loc.size))), place)


def low_rank(
    target: Any,
    rank: int,
    *,
    key: PRNGKeyArray,
    scale: ArrayLike = 0.1,
    init: Choices | None = None,
) -> Program:
    """A normal with covariance diagonal + a product of rank `rank`; see `mean_field`.

    The factor starts at small random values (`key`): at zero its gradient would be zero.
    """
    if rank < 1:
        raise ValueError(f"rank is at least 1, got {rank}: without a factor it is mean_field")
    place, loc, log_scale = _start(target, scale, init)
    factor = 0.1 * jnp.exp(log_scale)[:, None] * jax.random.normal(key, (loc.size, rank))
    return guided(LowRank(loc, log_scale, factor), place)


def amortized(target: Any, network: Any) -> Program:
    """A guide whose law is `network(*args)`, args being those that the guide is run with.

    `network` is a tree that can be called (an Equinox module; its arrays are the guide's leaves)
    and returns a law, `vi.guides.MeanField(loc, log_scale)`, `FullRank` or `LowRank`, of the
    target's coordinates: of every free site in the model's order, flat. `ppl.bind(guide, data)`
    fixes the arguments. `target` gives sites and shapes alone.
    """
    if not callable(network):
        raise ProgramError(f"an amortized guide's network is called, got {type(network).__name__}")
    module = network if isinstance(network, eqx.Module) else Code(network)
    return guided(module, layout(as_target(target)))


def law(guide: Program, *args: Any) -> Law:
    """The law of an automatic guide (for an amortized one at its arguments)."""
    first = guide.bound[0] if isinstance(guide, Program) and guide.bound else None
    if not isinstance(first, AutoGuide):
        raise ProgramError("law is of a guide made by mean_field, low_rank, full_rank, amortized")
    return first.at((*guide.bound[1:], *args))


def _start(
    target: Any, scale: ArrayLike, init: Choices | None
) -> tuple[Layout, Float[Array, " d"], Float[Array, " d"]]:
    place = layout(as_target(target))
    loc = jnp.zeros((place.size,)) if init is None else place.position(init)
    return place, loc, jnp.full((place.size,), jnp.log(jnp.asarray(scale, dtype=float)))
