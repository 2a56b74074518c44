"""What may be observed of a program, as numbers for a network: standardized, with what is known.

Masks as inputs, so that one network conditions on any part of the data: Chang et al. (2025),
"Amortized probabilistic conditioning for optimization, simulation and inference", section 3;
Gloeckler et al. (2024), "All-in-one simulation-based inference", section 3.2.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ...ppl.errors import ProgramError
from ...ppl.partial import Choices, Partial, as_given, walk
from .encoders import Features, Shapes

FAR = 10.0
"""Features are cut here, in standard deviations: beyond, a network knows nothing."""


@dataclasses.dataclass(frozen=True)
class Observed:
    """One observed site: its instances [...], the shape of one value, is it of whole numbers."""

    path: tuple[str, ...]
    instances: tuple[int, ...]
    shape: tuple[int, ...]
    discrete: bool

    @property
    def name(self) -> str:
        """The address in one string."""
        return "/".join(self.path)

    @property
    def numbers(self) -> int:
        """How many numbers one value has."""
        return int(np.prod(self.shape, dtype=int))


Values = tuple[Float[Array, "..."], ...]
"""Of every observed site its value, [*instances, numbers]."""

Known = tuple[Bool[Array, "..."], ...]
"""Of every observed site which [*instances] are known."""


class Inputs(eqx.Module):
    """How observed choices become features. Every number gives two, standardized: x and asinh(x).

    The second is relative to the site's median and median deviation (of whole numbers: as it is),
    so that a heavy tail or counts of all sizes are read finely where they are small. `low` and
    `high` are the range of the simulations, by site and number.
    """

    sites: tuple[Observed, ...] = eqx.field(static=True)
    masked: bool = eqx.field(static=True)
    center: tuple[Float[Array, " _"], ...]
    unit: tuple[Float[Array, " _"], ...]
    mean: tuple[Float[Array, "2 _"], ...]
    spread: tuple[Float[Array, "2 _"], ...]
    low: tuple[Float[Array, " _"], ...]
    high: tuple[Float[Array, " _"], ...]

    @property
    def shapes(self) -> Shapes:
        """For an encoder."""
        return tuple((site.instances, 2 * site.numbers) for site in self.sites)

    def features(self, values: Values, known: Known) -> Features:
        """Of one data set."""
        out = []
        for i, (x, here) in enumerate(zip(values, known, strict=True)):
            both = _both(x, self.center[i], self.unit[i])
            axes = tuple(range(here.ndim))
            mean, spread = (jnp.expand_dims(a, axes) for a in (self.mean[i], self.spread[i]))
            both = (both - mean) / spread
            both = jnp.clip(both.reshape(*here.shape, -1), -FAR, FAR)
            out.append((jnp.where(here[..., None], both, jnp.zeros_like(both)), here.astype(float)))
        return tuple(out)

    def read(self, data: Choices) -> tuple[Values, Known]:
        """Values and what is known of one data set; a site or `Partial` mask left out is unknown.

        Raises:
            ProgramError: a site that is no observed one, a wrong shape, a number that is not
                finite; or something unknown for a network that was not trained for it.
        """
        given = as_given(data)
        names: set[str] = set()
        walk(lambda path, node: names.add("/".join(path)), _leaves(given))
        unknown = sorted(names - {site.name for site in self.sites})
        if unknown:
            raise ProgramError(
                f"{unknown} were not observed in training, only "
                f"{[site.name for site in self.sites]}: train with them among observed="
            )
        values, known = zip(*(self._one(site, given) for site in self.sites), strict=True)
        return values, known

    def inside(self, values: Values, known: Known) -> Bool[Array, ""]:
        """Is all that is known within the range of the simulations?"""
        good = [jnp.ones((), bool)]
        for i, (x, here) in enumerate(zip(values, known, strict=True)):
            axes = tuple(range(here.ndim))
            low, high = (jnp.expand_dims(a, axes) for a in (self.low[i], self.high[i]))
            fits = jnp.all((x >= low) & (x <= high), axis=-1)
            good.append(jnp.all(fits | ~here))
        return jnp.all(jnp.stack(good))

    def mask(self, key: PRNGKeyArray) -> Known:
        """Random: in a fourth of the cases all is known, else a uniform share of each site."""
        key_all, *keys = jax.random.split(key, 1 + len(self.sites))
        everything = jax.random.bernoulli(key_all, 0.25)
        return tuple(
            everything | self._part(k, site) for k, site in zip(keys, self.sites, strict=True)
        )

    def whole(self) -> Known:
        """Everything is known."""
        return tuple(jnp.ones(site.instances, bool) for site in self.sites)

    def _part(self, key: PRNGKeyArray, site: Observed) -> Array:
        key_share, key_each = jax.random.split(key)
        share = jax.random.uniform(key_share)
        return jax.random.uniform(key_each, site.instances) < share

    def _one(self, site: Observed, given: Any) -> tuple[Array, Array]:
        node: Any = given
        for name in site.path:
            node = node.get(name) if isinstance(node, dict) else None
        if node is None:
            self._check_masked(site, "is not observed")
            empty = jnp.zeros((*site.instances, site.numbers))
            return empty, jnp.zeros(site.instances, bool)
        value = jnp.asarray(node.value)
        if value.shape != site.instances + site.shape:
            raise ProgramError(
                f"the value of {site.name!r} has shape {value.shape}, but the network was trained "
                f"for {site.instances + site.shape}: train it on a program of this size, or give "
                "fewer instances as ppl.Partial(padded values, mask) with masked=True in training"
            )
        known = jnp.ones(site.instances, bool)
        if node.mask is not None:
            self._check_masked(site, "is observed in part")
            known = jnp.broadcast_to(node.mask, site.instances)
        x = value.reshape(*site.instances, site.numbers).astype(float)
        bad = ~jnp.isfinite(x) & known[..., None]
        if not isinstance(bad, Tracer) and bool(jnp.any(bad)):
            raise ProgramError(
                f"the value of {site.name!r} is not finite: leave such instances out, as "
                "ppl.Partial(values, mask), with masked=True in training"
            )
        return jnp.where(known[..., None], x, jnp.zeros_like(x)), known

    def _check_masked(self, site: Observed, what: str) -> None:
        if not self.masked:
            raise ProgramError(
                f"{site.name!r} {what}, and this network always saw all of it: give its value, or "
                "train with masked=True, so that any part may be left out"
            )


def fit_inputs(sites: tuple[Observed, ...], masked: bool, values: Values) -> Inputs:
    """The inputs standardized by simulations [n, *instances, numbers] of every site."""
    columns = []
    for site, x in zip(sites, values, strict=True):
        rows = np.asarray(x, float).reshape(-1, site.numbers)
        center = np.zeros(site.numbers) if site.discrete else np.median(rows, axis=0)
        unit = np.ones(site.numbers)
        if not site.discrete:
            unit = np.median(np.abs(rows - center), axis=0)
            unit = np.where(unit > 0, unit, np.maximum(rows.std(axis=0), 1e-6))
        both = np.stack([rows, np.arcsinh((rows - center) / unit)], axis=1)
        spread = both.std(axis=0)
        spread = np.where(spread > 0, spread, 1.0)
        parts = (center, unit, both.mean(axis=0), spread, rows.min(axis=0), rows.max(axis=0))
        columns.append([jnp.asarray(part, float) for part in parts])
    return Inputs(sites, masked, *(tuple(column) for column in zip(*columns, strict=True)))


def _both(x: Array, center: Array, unit: Array) -> Array:
    x = x.astype(center.dtype)
    shape = (1,) * (x.ndim - 1) + (-1,)
    return jnp.stack([x, jnp.arcsinh((x - center.reshape(shape)) / unit.reshape(shape))], axis=-2)


def _leaves(given: Any) -> Any:
    """The tree with None for every `Partial`."""
    if isinstance(given, Partial):
        return None
    return {name: _leaves(node) for name, node in given.items()}
