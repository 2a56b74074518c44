"""The continuous free sites of a target as coordinates in R^d, each by NumPyro's `biject_to`."""

import dataclasses
import hashlib
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform, biject_to

from ....ppl.compiled import compiled
from ....ppl.distributions import third_party
from ....ppl.errors import ProgramError
from ....ppl.generative import Request, given_masks
from ....ppl.partial import Choices, as_given, walk
from ....ppl.probe import Probe
from ....ppl.target import Target


class Constant:
    """A tree of arrays that is structure: compared by content, never trained."""

    __slots__ = ("leaves", "structure", "_key")

    def __init__(self, tree: Any):
        leaves, self.structure = jax.tree.flatten(tree)
        self.leaves = [np.asarray(x) for x in leaves]
        content = hashlib.sha256(str(self.structure).encode())
        for x in self.leaves:
            content.update(f"{x.shape}{x.dtype}".encode() + np.ascontiguousarray(x).tobytes())
        self._key = content.hexdigest()

    @property
    def tree(self) -> Any:
        """The tree."""
        return self.structure.unflatten(map(jnp.asarray, self.leaves))

    def __eq__(self, other):
        return isinstance(other, Constant) and self._key == other._key

    def __hash__(self):
        return hash(self._key)

    def __repr__(self):
        return f"Constant({self._key[:16]})"


@dataclasses.dataclass(frozen=True)
class Site:
    """One site: its instances [...], the shapes of one value and of its coordinates, its support.

    Its coordinates are those from `start` on, `size` of them.
    """

    path: tuple[str, ...]
    instances: tuple[int, ...]
    shape: tuple[int, ...]
    unconstrained: tuple[int, ...]
    dtype: str
    support: Constant
    start: int

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return math.prod(self.instances + self.unconstrained)

    @property
    def transform(self) -> "ToSite":
        """From coordinates [size] to the site's value [*instances, *shape]."""
        return ToSite(self)

    def part(self, position: Float[Array, " d"]) -> Float[Array, " size"]:
        """This site's coordinates out of all."""
        return position[self.start : self.start + self.size]


class ToSite(Transform):
    """Coordinates [size] to a site's value, every instance by `biject_to` of its own support."""

    domain = constraints.real_vector  # pyright: ignore[reportAssignmentType]

    def __init__(self, site: Site):
        self.site = site

    @property
    def codomain(self):
        """Arrays of the value's shape; that they are in the support is not checked."""
        return constraints.independent(constraints.real, len(self.site.instances + self.site.shape))

    def __call__(self, x):
        """The value."""
        site = self.site
        bijection, x = self._bijection(), x.reshape(site.instances + site.unconstrained)
        return self._each(lambda b, x: b(x), bijection, x).astype(site.dtype)

    def _inverse(self, y):
        x = self._each(lambda b, y: b.inv(y), self._bijection(), y)
        return x.reshape(self.site.size).astype(jnp.result_type(float))

    def log_abs_det_jacobian(self, x, y, intermediates=None):
        """Log volume, summed over all coordinates, nats."""
        site = self.site
        x = x.reshape(site.instances + site.unconstrained)

        def one(b, x, y):
            return jnp.sum(b.log_abs_det_jacobian(x, y))

        return jnp.sum(self._each(one, self._bijection(), x, y)).astype(jnp.result_type(float))

    def forward_shape(self, shape):
        """Of the value."""
        return shape[:-1] + self.site.instances + self.site.shape

    def inverse_shape(self, shape):
        """Of the coordinates."""
        n = len(self.site.instances + self.site.shape)
        return shape[: len(shape) - n] + (self.site.size,)

    def tree_flatten(self):
        """No leaves: a site is structure."""
        return (), ((), {"site": self.site})

    def eq(self, other, static=False):
        """Of the same site?"""
        return isinstance(other, ToSite) and self.site == other.site

    def _bijection(self):
        return self.site.support.tree

    def _each(self, fn, support, *values):
        def one(support, *values):
            return fn(biject_to(support), *values)

        for _ in self.site.instances:
            one = jax.vmap(one)
        return third_party(one)(support, *values)


@dataclasses.dataclass(frozen=True)
class Layout:
    """All sites, in the order of the model; `size` coordinates."""

    sites: tuple[Site, ...]

    @property
    def size(self) -> int:
        """Number of coordinates, d."""
        return sum(site.size for site in self.sites)

    def choices(self, position: Float[Array, " d"]) -> tuple[Choices, Float[Array, ""]]:
        """The choices at a position, and the log volume of the map there, nats."""
        choices, log_volume = {}, jnp.zeros(())
        for site in self.sites:
            x = site.part(position)
            value = site.transform(x)
            log_volume = log_volume + site.transform.log_abs_det_jacobian(x, value)
            put(choices, site.path, value)
        return choices, log_volume

    def position(self, choices: Choices) -> Float[Array, " d"]:
        """The coordinates of choices."""
        return jnp.concatenate([s.transform._inverse(jnp.asarray(v)) for s, v in self._of(choices)])

    def _of(self, choices: Choices) -> Iterator[tuple[Site, Any]]:
        for site in self.sites:
            node: Any = choices
            for name in site.path:
                node = node[name] if isinstance(node, dict) and name in node else None
            if node is None or jnp.shape(node) != site.instances + site.shape:
                found = "nothing" if node is None else f"shape {jnp.shape(node)}"
                raise ProgramError(
                    f"the value of {'/'.join(site.path)!r} has {found}, but the site has shape "
                    f"{site.instances + site.shape}: give choices of all free sites"
                )
            yield site, node

    def log_density(self, target: Target, position: Float[Array, " d"]) -> Float[Array, ""]:
        """The target's log density with respect to the coordinates, nats."""
        choices, log_volume = self.choices(position)
        return target.log_density(choices) + log_volume


class _Supports(Probe):
    """Reports a continuous site's support and the coordinates of its value."""

    def report(self, path, key, d, value, log_prob):
        if not jnp.issubdtype(value.dtype, jnp.inexact):
            return None
        try:
            x = third_party(lambda: biject_to(d.support).inv(value))()
        except NotImplementedError as error:
            raise ProgramError(
                f"NumPyro has no map from R^n to the support of {'/'.join(path)!r}, {d.support}: "
                "write a guide for this target by hand, as a program with the same sites"
            ) from error
        return jax.tree.map(jnp.asarray, (d.support, x))

    def estimated(self, path, d):
        raise ProgramError(
            f"the density at {'/'.join(path)!r} is estimated (marginal or normalize), which has no "
            "coordinates: write a guide for this target by hand"
        )


def layout(target: Target) -> Layout:
    """The layout of a target's free sites, which must be continuous and always happen.

    Raises:
        ProgramError: a free site is discrete, happens only sometimes, is fixed in part, or has a
            support that depends on other sites.
    """
    given = as_given(target.constraints)
    if any(isinstance(x, Tracer) for x in jax.tree.leaves((target.args, given))):
        raise ProgramError("make a guide outside jit: what a site's support is has to be known")
    pair = _pair(target)
    one, two = (jax.tree.map(lambda x, i=i: x[i], pair) for i in range(2))
    sites: list[Site] = []

    def leaf(path, log_prob, fixed, value, active, again, report, other):
        name = "/".join(path)
        if fixed is True:
            return
        if fixed is not False:
            raise ProgramError(
                f"{name!r} is constrained at some of its instances: fix all of them or none for "
                "a guide"
            )
        if report is None:
            raise ProgramError(
                f"the guide is for continuous sites, but {name!r} is discrete: sum it out "
                "(ppl.marginal), constrain it, or write a guide by hand and give a strategy for it "
                "(vi.Enumerate(), vi.Score())"
            )
        if not all(a is None or bool(jnp.all(a)) for a in (active, again)):
            raise ProgramError(
                f"whether {name!r} happens is random, and a guide of fixed sites cannot say when: "
                "write a guide by hand, with the same branches"
            )
        support, x = report
        if Constant(support) != Constant(other[0]):
            raise ProgramError(
                f"the support of {name!r} depends on other sites ({support}): let the model draw "
                "a standardized value and compute this one from it, or write a guide by hand"
            )
        n = jnp.ndim(log_prob)
        shapes = (value.shape[n:], x.shape[n:])
        made = Site(path, value.shape[:n], *shapes, str(value.dtype), Constant(support), 0)
        sites.append(made)

    log_probs, choices, active, reports = one
    masks = given_masks(log_probs, given)
    walk(leaf, log_probs, masks, choices, active, two[2], reports, two[3])
    if not sites:
        raise ProgramError("the target has no free site, so that there is nothing to guide")
    order = _order(target)
    sites.sort(key=lambda site: order.index(site.path))
    starts = np.cumsum([0, *(site.size for site in sites)])
    placed = [dataclasses.replace(x, start=int(n)) for x, n in zip(sites, starts, strict=False)]
    return Layout(tuple(placed))


def _order(target: Target) -> list[tuple[str, ...]]:
    """The sites as the model comes to them; what leaves a compiled function is sorted by name."""
    order: list[tuple[str, ...]] = []

    def run(key):
        out = target.model.run(key, as_given(target.constraints), target.args)
        walk(lambda path, _: order.append(path), out.log_probs)
        return out.log_weight

    jax.eval_shape(run, jax.random.key(0))
    return order


@compiled
def _pair(target: Target) -> tuple[Any, Choices, Any, Any]:
    """Densities, choices, activity and reports of two runs, along a first axis."""
    given = as_given(target.constraints)

    def run(key):
        out = target.model.run(key, given, target.args, Request(probe=_Supports()))
        return out.log_probs, out.choices, out.active, out.reports

    return jax.vmap(run)(jax.random.split(jax.random.key(0), 2))


def put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Set the value at an address of nested dicts."""
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value
