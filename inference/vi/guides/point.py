"""Guides at one point: maximum a posteriori, and Laplace's normal around the mode."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import optax
from jaxtyping import Array, Bool, Float

from ....ppl.code import Code
from ....ppl.compiled import compiled
from ....ppl.distributions import third_party
from ....ppl.partial import Choices
from ....ppl.program import Program
from ....ppl.target import Target, as_target
from .guide import guided
from .laws import FullRank
from .layout import Layout, Site, layout


class _Point(eqx.Module):
    position: Float[Array, " d"]
    sites: tuple[Site, ...] = eqx.field(static=True)
    depth: int = eqx.field(static=True)


def delta(target: Any, *, init: Choices | None = None) -> Program:
    """All mass at one point, kept in the supports by coordinates: for maximum a posteriori.

    Its density at its point counts as 1, so that an ELBO with it is log p(choices, data): its
    maximum is the mode of the posterior density of the choices themselves (not of the
    coordinates), and no bound on the evidence. Errors as of `mean_field`.
    """
    place = layout(as_target(target))
    position = jnp.zeros((place.size,)) if init is None else place.position(init)
    return Program(Code(_points), (_Point(position, place.sites, 0),))


def _points(ctx, point, *args):
    groups: dict[str, list[Site]] = {}
    for site in point.sites:
        groups.setdefault(site.path[point.depth], []).append(site)
    for name, sites in groups.items():
        if len(sites[0].path) > point.depth + 1:
            inner = _Point(point.position, tuple(sites), point.depth + 1)
            ctx.call(name, Program(Code(_points), (inner,)))
            continue
        value = sites[0].transform(sites[0].part(point.position))
        ctx.sample(name, third_party(dist.Delta)(value, event_dim=jnp.ndim(value)))
    return {}


def laplace(target: Any, *, init: Choices | None = None, steps: int = 500) -> Program:
    """Laplace's approximation: the normal at the mode of the coordinates' density.

    Its covariance is the inverse of minus the Hessian of log density there; the mode is looked for
    by L-BFGS from `init` (choices) or coordinates 0. Exact where the coordinates' posterior is
    normal; else a guide to start from (its leaves are those of `full_rank`).

    Raises:
        ValueError: no maximum was found where the search ended.
    """
    target = as_target(target)
    place = layout(target)
    position = jnp.zeros((place.size,)) if init is None else place.position(init)
    mode, factor, found = _laplace(target, place, position, steps)
    if not bool(found):
        raise ValueError(
            f"L-BFGS found no maximum of the density in {steps} steps: give init=choices nearer to "
            "a mode, or more steps; a density that has no mode (a scale that tends to 0) needs "
            "vi.fit with mean_field or full_rank"
        )
    return guided(FullRank(mode, jnp.log(jnp.diagonal(factor)), jnp.tril(factor, -1)), place)


@compiled
def _laplace(
    target: Target, place: Layout, position: Float[Array, " d"], steps: int
) -> tuple[Float[Array, " d"], Float[Array, "d d"], Bool[Array, ""]]:
    def loss(z):
        return -place.log_density(target, z)

    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(_, carry):
        z, state = carry
        value, grad = value_and_grad(z, state=state)
        updates, state = third_party(optimizer.update)(
            grad, state, z, value=value, grad=grad, value_fn=loss
        )
        return optax.apply_updates(z, updates), state

    z, _ = jax.lax.fori_loop(0, steps, step, (position, optimizer.init(position)))
    precision = jax.hessian(loss)(z)
    values = jnp.linalg.eigvalsh(precision)
    # The Newton step that is left, in standard deviations.
    left = jax.grad(loss)(z)
    left = left @ jnp.linalg.solve(precision, left)
    found = (values[0] > 0) & (left < 1e-2)
    return z, jnp.linalg.cholesky(jnp.linalg.inv(precision)), found
