"""Independent copies of a program, one per element of its arguments."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from ..errors import ProgramError
from ..generative import PLAIN, GenerativeFunction, Outcome, Request
from ..partial import Given, Partial
from ..program import as_program


class Vmap(GenerativeFunction):
    """`ppl.vmap(program)`: everything gets a leading axis of instances."""

    inner: GenerativeFunction
    in_axes: Any = eqx.field(static=True)
    axis_size: int | None = eqx.field(static=True)

    def run(
        self, key: PRNGKeyArray | None, given: Given, args: tuple, request: Request = PLAIN
    ) -> Outcome:
        """See `GenerativeFunction.run`. Law: the product of the instances' laws."""
        in_axes = self.in_axes if isinstance(self.in_axes, tuple) else (self.in_axes,) * len(args)
        if len(in_axes) != len(args):
            raise ProgramError(
                f"ppl.vmap {'/'.join(request.where)!r} has in_axes for {len(in_axes)} arguments "
                "and was called "
                f"with {len(args)}: give one entry an argument, without the context"
            )
        size = self._size(args, in_axes, request)
        given = _checked(given, size, request)

        def one(i, args, given):
            return self.inner.run(
                None if key is None else jax.random.fold_in(key, i), given, args, request
            )

        out = jax.vmap(one, in_axes=(0, in_axes, 0))(jnp.arange(size), args, given)
        return eqx.tree_at(lambda o: o.log_weight, out, jnp.sum(out.log_weight))

    def _size(self, args, in_axes, request):
        sizes = set() if self.axis_size is None else {self.axis_size}

        def collect(axis: int | None, tree):
            if axis is None:
                return
            for x in jax.tree.leaves(tree):
                if not -jnp.ndim(x) <= axis < jnp.ndim(x):
                    raise ProgramError(
                        f"ppl.vmap {'/'.join(request.where)!r} got a value without axis {axis}, of "
                        f"shape {jnp.shape(x)}: map an array, or write None for it in in_axes"
                    )
                sizes.add(jnp.shape(x)[axis])

        for arg, axes in zip(args, in_axes, strict=True):
            if axes is not None:
                jax.tree.map(collect, axes, arg, is_leaf=lambda x: x is None)
        if len(sizes) != 1:
            raise ProgramError(
                f"ppl.vmap {'/'.join(request.where)!r} cannot tell its size from its args (sizes "
                f"{sorted(sizes)}): "
                "pass mapped args of one size, or ppl.vmap(program, in_axes=None, axis_size=n)"
            )
        return sizes.pop()


def _checked(given: Given, size: int, request: Request) -> Given:
    """The given values and their masks, each with a leading axis of `size`."""

    def spread(node: Partial) -> Partial:
        """One mask for all instances, as a retained particle has it, is one for each."""
        if node.mask is None or jnp.shape(node.mask):
            return node
        return Partial(node.value, jnp.broadcast_to(node.mask, (size,)))

    given = jax.tree.map(spread, given, is_leaf=lambda x: isinstance(x, Partial))
    for leaf in jax.tree.leaves(given):
        if not jnp.shape(leaf) or jnp.shape(leaf)[0] != size:
            raise ProgramError(
                f"a value given under {'/'.join(request.where)!r} has shape {jnp.shape(leaf)}, "
                f"but there are {size} "
                "instances: give one value an instance along the first axis (ppl.Partial(values, "
                "mask) gives some)"
            )
    return given


def vmap(program: Any, in_axes: Any = 0, axis_size: int | None = None) -> Vmap:
    """Map a program over its arguments, as `jax.vmap` maps a function; instances are independent.

    `in_axes` is as in `jax.vmap`, over the program's arguments without the context.
    """
    return Vmap(as_program(program), in_axes, axis_size)
