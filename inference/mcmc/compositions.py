"""Kernels made of kernels: one after the other, one drawn at random, or one now and then."""

from collections.abc import Sequence as Several
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .kernel import Kernel


class Sequence(Kernel):
    """`Sequence([k1, k2, ...])`: the kernels one after the other; acceptance is their mean.

    Law: each leaves the target invariant, so the sequence does. It is not reversible.
    """

    kernels: tuple[Kernel, ...]

    def __init__(self, kernels: Several[Kernel]):
        self.kernels = _some("Sequence", kernels)

    def move(self, key, target, chain, steps=None):
        """See `Kernel.move`."""
        rates = []
        for i, kernel in enumerate(self.kernels):
            chain = kernel.move(jax.random.fold_in(key, i), target, chain, steps)
            rates.append(chain.acceptance)
        return chain.rated(jnp.mean(jnp.stack(rates)))


class Mixture(Kernel):
    """`Mixture([k1, k2, ...], probs)`: at each move one of the kernels, drawn with `probs`.

    `probs` (equal by default) are normalised and may not depend on the state: then, and only then,
    the mixture leaves the target invariant. Under `vmap` (particles, chains) every kernel is run
    and one result taken.
    """

    kernels: tuple[Kernel, ...]
    probs: Float[Array, " k"]

    def __init__(self, kernels: Several[Kernel], probs: Any = None):
        self.kernels = _some("Mixture", kernels)
        n = len(self.kernels)
        self.probs = jnp.asarray(jnp.full(n, 1 / n) if probs is None else probs, dtype=float)
        if self.probs.shape != (n,):
            raise ValueError(
                f"Mixture of {n} kernels needs {n} probabilities, got shape {self.probs.shape}"
            )

    def move(self, key, target, chain, steps=None):
        """See `Kernel.move`."""
        key_which, key_move = jax.random.split(key)
        which = jax.random.categorical(key_which, jnp.log(self.probs))

        def branch(kernel):
            return lambda key, target, chain: kernel.move(key, target, chain, steps)

        return jax.lax.switch(which, [branch(k) for k in self.kernels], key_move, target, chain)


class Every(Kernel):
    """`Every(kernel, steps)`: inside a filter apply `kernel` after each so many steps, not each.

    Between, its cost is not paid. Outside a filter it is the kernel itself. `steps` is an array:
    another compiles nothing.
    """

    kernel: Kernel
    steps: Int[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, jnp.int32))

    def due(self, steps):
        """See `Kernel.due`."""
        return (steps % jnp.maximum(self.steps, 1) == 0) & self.kernel.due(steps)

    def move(self, key, target, chain, steps=None):
        """See `Kernel.move`."""
        return self.kernel.move(key, target, chain, steps)

    def walk(self, key, target, chain, steps=None):
        """See `Kernel.walk`."""
        return self.kernel.walk(key, target, chain, steps)


def _some(who: str, kernels: Several[Kernel]) -> tuple[Kernel, ...]:
    kernels = tuple(kernels)
    if not kernels or not all(isinstance(k, Kernel) for k in kernels):
        raise ValueError(f"{who} takes a list of at least one kernel, got {kernels!r}")
    return kernels
