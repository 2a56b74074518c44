"""Gibbs sampling of discrete sites by enumeration of their conditional.

Geman and Geman 1984, "Stochastic relaxation, Gibbs distributions, and the Bayesian restoration of
images".
"""

import itertools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ...ppl.errors import ProgramError
from ...ppl.generative import Request, likelihood
from ...ppl.partial import as_given, spelled, total, walk, where_leading
from ...ppl.probe import FINITE_SUPPORT
from ...ppl.selection import Selection
from .kernel import Kernel
from .transition import all_equal, at, exact_densities, movable, settle, written

LIMIT = 2**14


class BlockGibbs(Kernel):
    """`BlockGibbs(selection, size)`: each block of `size` instances from its exact conditional.

    The selected instances (of all sites, in order of site and step) are gone through in blocks,
    each drawn from the target's conditional given all else, by evaluating the joint density at
    every combination of values. Costs (values per instance)^size runs of the model a block.

    What happens stays: values that would make other sites happen or not (a branch, an early end)
    are left out, which is the exact conditional given what happens. To change that, alternate with
    `MH` or `Suffix`. `acceptance` is the share of instances whose value changed.

    Errors: an empty selection, a site without a finite support, an estimated density.
    """

    selection: Selection
    size: int = eqx.field(static=True)

    def __check_init__(self):
        if self.size < 1:
            raise ValueError(f"BlockGibbs needs blocks of at least one instance, got {self.size}")

    def move(self, key, target, chain, steps=None):
        """See `Kernel.move`."""
        old, fixed = written(chain.trace), as_given(target.constraints)
        model = target.state_space()
        request = Request(complete=True, probe=FINITE_SUPPORT)
        masks = movable("Gibbs", target, old, self.selection)

        def run(choices):
            return model.run_to(None, target.joined(choices), target.args, steps, request)

        out = run(old.choices)
        exact_densities("Gibbs", out)
        layout = _Layout(masks, old, out.reports, self.size)

        def density(choices):
            out = run(choices)
            log_p = target.raised(total(out.log_probs) + out.log_weight, likelihood(out, fixed))
            same = all_equal(old.log_probs, spelled(out.active, out.log_probs), old.active)
            return jnp.where(same & ~jnp.isnan(log_p), log_p, -jnp.inf), layout.support(out)

        def update(b, carry):
            choices, support = carry
            block = layout.block(b)

            def weigh(digits):
                log_p, other = density(layout.put(choices, support, block, digits))
                alike = layout.valid(block, digits) & layout.same(block, support, other)
                return jnp.where(alike, log_p, -jnp.inf), other

            log_ps, supports = jax.vmap(weigh)(layout.combinations)
            pick = jax.random.categorical(jax.random.fold_in(key, b), log_ps)
            new = layout.put(choices, support, block, layout.combinations[pick])
            new = new, [s[pick] for s in supports]
            # A trace of density zero has no conditional: it stays.
            possible = jnp.max(log_ps) > -jnp.inf
            return jax.tree.map(lambda n, o: jnp.where(possible, n, o), new, carry)

        start = (old.choices, layout.support(out))
        choices, _ = jax.lax.fori_loop(0, layout.blocks, update, start)
        trace, state = at(target, choices, steps)
        rate = layout.changed(old.choices, choices)
        return settle(jnp.ones((), bool), chain, trace, state, rate)


class Gibbs(Kernel):
    """`Gibbs(selection)`: one instance after the other from its conditional; see `BlockGibbs`."""

    selection: Selection

    def move(self, key, target, chain, steps=None):
        """See `Kernel.move`."""
        return BlockGibbs(self.selection, 1).move(key, target, chain, steps)


class _Layout:
    """The selected instances numbered through, and how to write values at some of them."""

    def __init__(self, masks: Any, trace: Any, supports: Any, size: int):
        self.sites: list[tuple[tuple[str, ...], int, tuple[int, ...], int]] = []
        wanted, self.size, offset = [], size, 0

        def site(path, log_prob, mask, active, support):
            nonlocal offset
            if mask is False:
                return
            if support is None:
                raise ProgramError(
                    f"Gibbs goes through the values of a site, but {'/'.join(path)!r} has no "
                    "finite support: use HMC, NUTS, RandomWalk or Metropolis for it, and leave it "
                    "out of this selection"
                )
            shape = jnp.shape(log_prob)
            self.sites.append((path, offset, shape, support.shape[len(shape)]))
            offset += math.prod(shape)
            wanted.append(jnp.ravel(active if mask is True else active & mask))

        walk(site, trace.log_probs, masks, trace.active, supports)
        hit = jnp.concatenate(wanted)
        room = -(-offset // size) * size
        self.ids = jnp.nonzero(hit, size=room, fill_value=offset)[0].astype(jnp.int32)
        self.count = jnp.sum(hit, dtype=jnp.int32)
        self.blocks = (self.count + size - 1) // size
        sizes = [np.full(math.prod(shape), k) for _, _, shape, k in self.sites]
        self.values = jnp.asarray(np.concatenate([*sizes, [1]]), jnp.int32)
        most = max(k for *_, k in self.sites)
        if most**size > LIMIT:
            raise ProgramError(
                f"a block of {size} instances with {most} values each has {most**size} "
                f"combinations, more than {LIMIT}: use smaller blocks"
            )
        self.combinations = jnp.asarray(
            list(itertools.product(range(most), repeat=size)), jnp.int32
        )

    def block(self, b: Array) -> Array:
        """The numbers of the instances of block b; beyond the last one that of none."""
        return jax.lax.dynamic_slice_in_dim(self.ids, b * self.size, self.size)

    def valid(self, block: Array, digits: Array) -> Array:
        """Is each digit the index of a value (0 where there is no instance)?"""
        return jnp.all(digits < self.values[block])

    def support(self, out: Any) -> list[Array]:
        """The values that the sites may take."""
        return [_at(out.reports, path) for path, *_ in self.sites]

    def same(self, block: Array, a: list[Array], b: list[Array]) -> Array:
        """Do the block's instances have the same values to take?"""
        equal = []
        for (_, offset, shape, _), x, y in zip(self.sites, a, b, strict=True):
            here = self._hits(block, offset, shape).any(-1)
            alike = jnp.all(jnp.reshape(x == y, (*shape, -1)), axis=-1)
            equal.append(jnp.all(alike | ~here))
        return jnp.all(jnp.stack(equal))

    def put(self, choices: Any, support: list[Array], block: Array, digits: Array) -> Any:
        """The choices with the block's instances set to their values of these indices."""
        for (path, offset, shape, k), values in zip(self.sites, support, strict=True):
            hits = self._hits(block, offset, shape)
            index = jnp.minimum(jnp.sum(jnp.where(hits, digits, 0), -1, dtype=jnp.int32), k - 1)
            axes = len(shape)
            index = index.reshape(shape + (1,) * (values.ndim - axes))
            value = jnp.squeeze(jnp.take_along_axis(values, index, axis=axes), axes)
            old = _at(choices, path)
            choices = _set(choices, path, where_leading(hits.any(-1), value, old))
        return choices

    def changed(self, old: Any, new: Any) -> Array:
        """The share of the selected instances whose value differs."""
        n = jnp.zeros((), jnp.int32)
        for path, _, shape, _ in self.sites:
            differs = jnp.reshape(_at(old, path) != _at(new, path), (*shape, -1))
            n = n + jnp.sum(differs.any(-1), dtype=jnp.int32)
        return n.astype(float) / jnp.maximum(self.count, 1).astype(float)

    def _hits(self, block: Array, offset: int, shape: tuple[int, ...]) -> Array:
        """[*instances, size]: which instance is which of the block."""
        numbers = offset + jnp.arange(math.prod(shape), dtype=jnp.int32)
        return (numbers[:, None] == block[None]).reshape(*shape, self.size)


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _set(tree: Any, path: tuple[str, ...], value: Any) -> Any:
    if not path:
        return value
    return {**tree, path[0]: _set(tree[path[0]], path[1:], value)}
