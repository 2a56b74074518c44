"""Branches: the objective run again with one site instance at another of its values."""

import math
import zlib
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ...ppl.partial import Partial
from .records import AtDraws, Level, Path, Site, change_within
from .strategies import Strategy


class Branches(eqx.Module):
    """The branches of one site: of m of its n instances, K each.

    `instance` [m] counts instances row by row; `weights` [m, K] are differentiable, `values`
    [m, K, *event]. `share` is n / m.
    """

    site: Site
    strategy: Strategy
    instance: Int[Array, " m"]
    weights: Float[Array, "m k"]
    values: Array
    share: float = eqx.field(static=True)

    @property
    def size(self) -> int:
        """How many runs they take."""
        return self.weights.size

    def spread(self, total: int, start: int) -> tuple[Array, Array]:
        """Instances in the guide [total] and values [total, *event], ours at `start`, 0 around."""
        k, event = self.weights.shape[1], self.values.shape[2:]
        inner = math.prod(self.site.log_prob.shape[len(self.site.runs) :])
        instance = jnp.repeat(self.instance % inner, k)
        end = start + self.size
        at = jnp.zeros(total, instance.dtype).at[start:end].set(instance)
        values = jnp.zeros((total, *event), self.values.dtype)
        return at, values.at[start:end].set(self.values.reshape(-1, *event))

    def runs(self) -> Int[Array, "size manys"]:
        """In which run of each `many` around the site a branch is."""
        shape = self.site.log_prob.shape
        if not self.site.runs:
            return jnp.zeros((self.size, 0), self.instance.dtype)
        index = jnp.stack(jnp.unravel_index(self.instance, shape), axis=-1)
        return jnp.repeat(index[:, : len(self.site.runs)], self.weights.shape[1], axis=0)


def branches_of(key: PRNGKeyArray, site: Site, strategy: Strategy) -> Branches:
    """The branches of a site that reports some; of some instances if its strategy says so."""
    report, shape = site.report, site.log_prob.shape
    assert report is not None and report.values is not None and report.weights is not None
    n = math.prod(shape)
    weights = report.weights.reshape(n, -1)
    weights = jnp.where(site.active.reshape(n, 1), weights, jnp.zeros_like(weights))
    values = report.values.reshape(n, *report.values.shape[len(shape) :])
    m = getattr(strategy, "instances", None)
    if m is None or m >= n:
        return Branches(site, strategy, jnp.arange(n), weights, values, 1.0)
    name = "instances of " + "/".join(site.address)
    key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    chosen = jax.random.choice(key, n, (m,), replace=False)
    return Branches(site, strategy, chosen, weights[chosen], values[chosen], n / m)


def branch_terms(
    levels: tuple[Level, ...],
    group: list[Branches],
    drawn: Float[Array, ""],
    again: Callable[[Any], Float[Array, ""]],
) -> list[Float[Array, ""]]:
    """The surrogate's terms of sites at the same place: one batch of runs for all of them.

    `drawn` is the objective as drawn, `again(change)` runs it with a change, without gradient.
    """
    ends = np.cumsum([0, *(b.size for b in group)])
    total = int(ends[-1])
    which = jnp.asarray(np.repeat(np.arange(len(group)), np.diff(ends)))
    runs = jnp.concatenate([b.runs() for b in group])
    spread = [b.spread(total, int(start)) for b, start in zip(group, ends[:-1], strict=True)]

    def one(which, runs, spread):
        given: dict[str, Any] = {}
        for s, (branches, (at, value)) in enumerate(zip(group, spread, strict=True)):
            site = branches.site
            axes = site.log_prob.shape[len(site.runs) :]
            mask = (jnp.arange(math.prod(axes)) == at) & (which == s)
            value = jnp.broadcast_to(value, (*axes, *value.shape))
            _put(given, site.path, Partial(value, mask.reshape(axes)))
        return again(change_within(levels, runs, AtDraws(given)))

    results = jax.vmap(one)(which, runs, spread)
    terms = []
    for branches, start, end in zip(group, ends[:-1], ends[1:], strict=True):
        values = results[start:end].reshape(branches.weights.shape)
        term = branches.strategy.term(branches.weights, drawn, values)
        terms.append(jnp.sum(term) * branches.share)
    return terms


def _put(tree: dict, path: Path, leaf: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = leaf
