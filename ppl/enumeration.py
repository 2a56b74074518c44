"""Exact posteriors of finite targets, by going through every assignment of the free sites."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from .compiled import compiled
from .errors import ProgramError, site_name
from .generative import Request, given_masks, likelihood
from .partial import Choices, as_given, as_value, total, walk, where_leading
from .probe import FINITE_SUPPORT
from .target import Target, as_target

LIMIT = 2**20
CHUNK = 2**13


class ExactPosterior(eqx.Module):
    """The posterior of a finite target, whole.

    - `log_evidence`: log Z, nats; -inf if nothing is possible.
    - `choices`: the M possible choices along a leading axis, constrained sites included; values of
      what did not happen are zero.
    - `log_probs`: their posterior log-probabilities (float64), nats.
    - `happened`: per site, which of its instances happened, [M, *instances].
    - `supports`: per site, None or the values that it may take, [*instances, K, *event].
    """

    target: Target
    log_evidence: float
    choices: Choices
    log_probs: Float[np.ndarray, " m"]
    happened: Any
    supports: Any

    def expectation(self, f: Callable[[Choices], PyTree]) -> PyTree:
        """The posterior expectation of `f(choices) -> pytree`; a float64 numpy array a leaf."""
        self._check_possible()
        probabilities = np.exp(self.log_probs)

        def mean(values):
            values = np.asarray(values).astype(np.float64)
            return np.tensordot(probabilities, values, axes=1)

        return jax.tree.map(mean, jax.vmap(f)(self.choices))

    def log_prob(self, choices: Choices) -> Float[Array, ""]:
        """Posterior log-probability of one dict of choices, nats; `jax.vmap` it over many.

        The constrained sites may be left out. -inf for choices that contradict them or are
        impossible. Values at instances that do not happen are ignored.
        """
        self._check_possible()
        return self.target.log_density(choices) - self.log_evidence

    def marginal(self, *path: str) -> tuple[PyTree, Float[np.ndarray, "*instances k"]]:
        """The values that the site at `path` may take, and their probabilities for each instance.

        The probabilities of an instance sum to the probability that it happens.
        """
        self._check_possible()
        support, value, happened = (
            at_path(t, path) for t in (self.supports, self.choices, self.happened)
        )
        if support is None:
            raise ProgramError(
                f"{site_name((), '/'.join(path))} is not a site with a finite support"
            )
        hit = jax.vmap(lambda v: matches(support, v, happened.ndim - 1))(value)
        hit = np.asarray(hit & happened[..., None], np.float64)
        return support, np.tensordot(np.exp(self.log_probs), hit, axes=1)

    def _check_possible(self):
        if not len(self.log_probs):
            raise ProgramError(
                "the target has evidence 0: no choice is possible under its constraints, so there "
                "is no posterior. Look at .log_evidence (-inf) first, or relax the constraints"
            )


def enumerate(target: Any, *, limit: int = LIMIT) -> ExactPosterior:
    """The exact posterior of a target whose free sites are all discrete with finite supports.

    Every product of values of the free site instances is weighed once; assignments that differ only
    at instances that do not happen (an untaken branch, the steps after a finish) are one choice.
    Sums are taken in float64 on the host. Errors: a free site without a finite support; an
    estimated density; more than `limit` assignments; a site whose set of values depends on earlier
    choices (give it the union of the sets; values outside have log density -inf). Not for `jit`.
    """
    target = as_target(target)
    instances, supports = _discover(target)
    masks = given_masks(instances, as_given(target.constraints))
    free = walk(_free_instances, instances, supports, masks)
    sizes = []
    walk(lambda path, n: sizes.extend([("/".join(path), *n)] if n[0] else []), free)
    count = math.prod(k**n for _, n, k in sizes)
    if count > limit:
        raise ProgramError(
            f"enumeration would go through {count} assignments "
            f"({', '.join(f'{s}: {k}^{n}' for s, n, k in sizes)}), more than {limit}. "
            f"Constrain some sites, shorten the model, or pass limit={count}; "
            "a chain has exact answers at any length in feynkac.models.finite"
        )
    chunk = min(CHUNK, 1 << (count - 1).bit_length())
    parts = [
        _evaluate(
            target, instances, supports, _indices(instances, free, masks, start, chunk, count)
        )
        for start in range(0, count, chunk)
    ]
    return _collect(target, supports, parts, count)


@compiled
def _discover(target: Target):
    """Per site an array shaped like its instances, and its support or None."""
    given = as_given(target.constraints)
    out = target.model.run(jax.random.key(0), given, target.args, Request(probe=FINITE_SUPPORT))
    log_probs = walk(lambda _, lp: jnp.zeros_like(lp, bool), out.log_probs)
    _no_estimates(out.log_probs, out.reports, ())
    return log_probs, walk(lambda _, lp, s: s, out.log_probs, out.reports)


def _no_estimates(log_probs: Any, support: Any, path: tuple[str, ...]) -> None:
    for name, node in log_probs.items():
        inner = (support or {}).get(name)
        if isinstance(node, dict):
            _no_estimates(node, inner, (*path, name))
        elif name not in (support or {}):
            raise ProgramError(
                f"the density at {site_name(path, name)} is estimated (marginal or normalize), so "
                "that nothing with it inside can be enumerated: call the inner program instead"
            )


def _free_instances(path, instances, support, mask) -> tuple[int, int]:
    """How many instances of the site are free, and how many values each may take."""
    n = 0 if mask is True else instances.size if mask is False else int(np.sum(~np.asarray(mask)))
    if n and support is None:
        raise ProgramError(
            f"site {site_name(path[:-1], path[-1])} has no finite support (it is continuous, "
            "infinite or joint over a shape that NumPyro does not enumerate): constrain it, or use "
            "a discrete distribution with one value a site"
        )
    return n, support.shape[instances.ndim] if n else 1


def _indices(instances, free, masks, start, chunk, count):
    """For each assignment of a chunk the index of the value at each instance, 0 if constrained."""
    numbers = np.arange(start, start + chunk) % count
    rest = numbers

    def leaf(_, inst, n_k, mask):
        nonlocal rest
        n, k = n_k
        index = np.zeros((chunk, inst.size), np.int32)
        free_here = np.arange(inst.size) if mask is False else np.flatnonzero(~np.asarray(mask))
        for i in free_here if n else ():
            rest, index[:, i] = np.divmod(rest, k)
        return jnp.asarray(index.reshape(chunk, *inst.shape))

    return jnp.asarray(numbers), walk(leaf, instances, free, masks)


@compiled
def _evaluate(target, instances, supports, indices):
    constraints = as_given(target.constraints)

    def one(numbered):
        _, index = numbered
        given = as_given(walk(_value, instances, supports, index, constraints))
        out = target.model.run(
            None, given, target.args, Request(complete=True, probe=FINITE_SUPPORT)
        )
        canonical, fixed = [], []

        def check(_, i, active, before, after):
            active = jnp.ones_like(i, bool) if active is None else active
            canonical.append(jnp.all(active | (i == 0)))
            if before is not None:
                same = before == after
                same = jnp.all(same.reshape(*active.shape, -1), axis=-1)
                fixed.append(jnp.all(same | ~active))
            return active

        happened = walk(check, index, out.active, supports, out.reports)
        everything = jnp.ones((), bool)
        whole = total(out.log_probs) + out.log_weight
        log_density = target.raised(whole, likelihood(out, constraints))
        return (
            out.choices,
            happened,
            log_density,
            _all(canonical, everything),
            _all(fixed, everything),
        )

    return jax.vmap(one)(indices)


def _all(flags, everything):
    for flag in flags:
        everything = everything & flag
    return everything


def _value(_, instances, support, index, constraint):
    """The value of a site under one assignment."""
    fixed = None if constraint is None else as_value(constraint)
    if fixed is not None and fixed.mask is None:
        return fixed.value
    axis = instances.ndim
    at = index.reshape(index.shape + (1,) * (support.ndim - axis))
    value = jnp.squeeze(jnp.take_along_axis(support, at, axis=axis), axis)
    if fixed is None or fixed.mask is None:
        return value
    given = jnp.asarray(fixed.value)
    return where_leading(fixed.mask, given.astype(value.dtype), value)


def _collect(target, supports, parts, count):
    choices, happened, log_density, canonical, fixed = jax.tree.map(
        lambda *xs: np.concatenate([np.asarray(x) for x in xs])[:count], *parts
    )
    if not fixed.all():
        raise ProgramError(
            "the set of values of some site changes with earlier choices. Instead give the site "
            "the union of the sets, with log density -inf (a logit of -inf) for what is outside"
        )
    wrong = canonical & (np.isnan(log_density) | np.isposinf(log_density))
    if wrong.any():
        at = jax.tree.map(lambda x: x[np.argmax(wrong)].tolist(), choices)
        raise ProgramError(f"the log density is {log_density[np.argmax(wrong)]} at choices {at}")
    possible = canonical & ~np.isneginf(log_density)
    log_density = log_density[possible].astype(np.float64)
    top = log_density.max(initial=-np.inf)
    log_evidence = (
        -math.inf if np.isneginf(top) else float(top + np.log(np.sum(np.exp(log_density - top))))
    )
    choices, happened = jax.tree.map(lambda x: jnp.asarray(x[possible]), (choices, happened))
    return ExactPosterior(
        target, log_evidence, choices, log_density - log_evidence, happened, supports
    )


def matches(support: Array, value: Array, axes: int) -> Bool[Array, "*instances k"]:
    """Which of the values of a support [*instances, K, *event] is `value` [*instances, *event]."""
    same = support == jnp.expand_dims(value, axes).astype(support.dtype)
    return jnp.all(same.reshape(*support.shape[: axes + 1], -1), axis=-1)


def at_path(tree: Any, path: tuple[str, ...]) -> Any:
    """The node of nested dicts at a path, or None."""
    for name in path:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree
