"""Values for some sites of a program: nested dicts whose leaves are `Partial`."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

Choices = dict[str, Any]
"""Nested dict from site name to value, with leading instance axes under `vmap` and `scan`."""

Given = dict[str, Any]
"""Nested dict from site name to `Partial`."""


class Partial(eqx.Module):
    """A value for a site, given where `mask` is true and left to be drawn elsewhere.

    `mask` ranges over the instance axes of the site (those added by `vmap`, `scan` and time), or
    is None: given everywhere. A `Partial` may stand wherever a constraint is expected: `{"token":
    ppl.Partial(tokens, jnp.arange(64) < 5)}` fixes the first five tokens.
    """

    value: PyTree
    mask: Bool[Array, "..."] | None = None


def is_partial(x) -> bool:
    """True for a `Partial` node, for use as `is_leaf`."""
    return isinstance(x, Partial)


def as_given(choices: Choices | None) -> Given:
    """Choices with every value wrapped as a `Partial`."""
    if not choices:
        return {}

    def wrap(node) -> Any:
        if isinstance(node, Partial):
            mask = None if node.mask is None else jnp.asarray(node.mask, bool)
            return Partial(jax.tree.map(jnp.asarray, node.value), mask)
        if isinstance(node, dict):
            return {name: wrap(child) for name, child in node.items()}
        return Partial(jax.tree.map(jnp.asarray, node))

    return wrap(choices)


def as_value(node) -> Partial:
    """One `Partial` for a site whose value is a tree, from the tree of `Partial`s given for it."""
    if isinstance(node, Partial):
        return node
    leaves = jax.tree.leaves(node, is_leaf=is_partial)
    mask = leaves[0].mask if leaves else None
    return Partial(jax.tree.map(lambda p: p.value, node, is_leaf=is_partial), mask)


def overlay(given: Given, below: Given) -> Given:
    """`given` laid over `below`: where both have a value the first counts."""
    out = dict(below)
    for name, node in given.items():
        if name not in below:
            out[name] = node
        elif isinstance(node, dict) and isinstance(below[name], dict):
            out[name] = overlay(node, below[name])
        else:
            out[name] = _overlay_leaf(as_value(node), as_value(below[name]))
    return out


def _overlay_leaf(top: Partial, below: Partial) -> Partial:
    mask = top.mask
    if mask is None:
        return top
    value = where_leading(mask, top.value, below.value)
    return Partial(value, None if below.mask is None else mask | below.mask)


def where_leading(mask: Bool[Array, "..."], x: PyTree, y: PyTree) -> PyTree:
    """`where` with a mask over the leading axes of every leaf (typed keys included)."""

    def pick(a, b):
        a, b = jnp.asarray(a), jnp.asarray(b)
        return jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - mask.ndim)), a, b)

    return jax.tree.map(pick, x, y)


def walk(fn: Callable, log_probs: Any, *trees: Any, path: tuple[str, ...] = ()) -> Any:
    """Map `fn(path, log_prob, *nodes)` over the sites of a program.

    The sites are the leaves of `log_probs`; in the other trees a missing node is None.
    """
    if not isinstance(log_probs, dict):
        return fn(path, log_probs, *trees)
    children = [tree if isinstance(tree, dict) else {} for tree in trees]
    return {
        name: walk(fn, child, *(c.get(name) for c in children), path=(*path, name))
        for name, child in log_probs.items()
    }


def total(log_probs: Any, mask: Any = None) -> Float[Array, ""]:
    """Sum of the log densities of all site instances, or of those where `mask` holds.

    `mask` is a tree parallel to `log_probs` with leaves True, False or boolean arrays over the
    instances.
    """
    terms: list = []
    dtype = jnp.result_type(float)

    def add(_, log_prob, keep):
        if keep is False:
            return
        kept = log_prob if keep is True else where_leading(keep, log_prob, jnp.zeros_like(log_prob))
        terms.append(jnp.sum(kept).astype(dtype))

    if mask is None:
        walk(lambda path, lp: add(path, lp, True), log_probs)
    else:
        walk(add, log_probs, mask)
    return sum(terms[1:], terms[0]) if terms else jnp.zeros(())


def prune(tree: Any) -> Any:
    """The nested dict without missing (None) leaves and without the dicts that are then empty."""
    if not isinstance(tree, dict):
        return tree
    out = {name: prune(child) for name, child in tree.items()}
    return {
        name: child
        for name, child in out.items()
        if child is not None and not (isinstance(child, dict) and not child)
    }


def spelled(active: Any, log_probs: Any) -> Any:
    """Activity with None (happened everywhere) written out as arrays, parallel to `log_probs`."""
    return walk(
        lambda _, lp, a: jnp.ones(jnp.shape(lp), bool) if a is None else a, log_probs, active
    )


def agrees(log_probs: Any, active: Any, given: Given, choices: Any) -> Bool[Array, ""]:
    """Do choices have the given values, where both say something and the instance happened?"""
    same: list = [jnp.ones((), bool)]

    def leaf(_, log_prob, happened, node, value):
        if node is None or value is None:
            return
        fixed, value = as_value(node), as_value(value)
        masks = [mask for mask in (happened, fixed.mask, value.mask) if mask is not None]
        for a, b in zip(jax.tree.leaves(fixed.value), jax.tree.leaves(value.value), strict=True):
            equal = jnp.asarray(a) == jnp.asarray(b)
            for mask in masks:
                equal = where_leading(mask, equal, jnp.ones_like(equal))
            same.append(jnp.all(equal))

    walk(leaf, log_probs, active, given, as_given(choices))
    return jnp.all(jnp.stack(same))
