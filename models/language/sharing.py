"""One forward pass for all particles that have read the same text.

Resampling copies particles, and constraints force the same tokens on many of them, so that a
population often holds few distinct texts. Servers share work between requests in a radix tree
(Zheng et al., "SGLang", 2024, arXiv:2312.07104, section 3); here the batch is compiled with two
sizes, and the smaller one runs whenever the distinct texts fit into it: no host call, and the same
states up to rounding.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from ...ppl.combinators.branches import any_member

FEWEST = 8


def rows_of(size: int) -> int:
    """Rows of the smaller batch for a population; as many as there are particles: none is made.

    A pass over fewer than 8 rows costs no less, since all weights are read for it, and each batch
    size is one more network to compile.
    """
    rows = max(FEWEST, size // 4)
    return rows if 2 * rows <= size else size


def once_for_equal(
    run: Callable[..., PyTree],
    common: PyTree,
    own: PyTree,
    memory: PyTree,
    text: Int[Array, "S"],
    live: Bool[Array, ""],
) -> PyTree:
    """`run(common, own, memory, row=None)`; under `vmap` once for particles with equal `text`.

    Args:
        run: of one particle, made by `jax.jit`, so that it is traced once however often programs
            are. Given a row number, its `memory` is that row of what it is told.
        common: arrays that all particles share, such as weights; where one is batched, nothing is
            shared.
        own: what differs between particles, a function of `text`.
        memory: what differs and is large: no row is copied but what `run` reads of it.
        text: what the result depends on, besides `common`.
        live: whether the result is read; where it is not, it is unspecified.

    Law: values and derivatives of `run`, up to rounding. Differentiated, it shares nothing.
    """

    @jax.custom_jvp
    def shared(common, own, memory, text, live):
        return _sharing(run, common, own, memory, text, live)

    @shared.defjvp
    def _derivative(primals, tangents):
        return jax.jvp(functools.partial(run, row=None), primals[:3], tangents[:3])

    return shared(common, own, memory, text, live)


def _sharing(run: Callable, *operands: PyTree) -> PyTree:
    @jax.custom_batching.custom_vmap
    def one(common, own, memory, text, live):
        return run(common, own, memory, row=None)

    @one.def_vmap
    def _batched(size, batched, common, own, memory, text, live):
        axes = jax.tree.map(lambda b: 0 if b else None, tuple(batched[:3]))
        each = jax.vmap(functools.partial(run, row=None), in_axes=axes, axis_size=size)
        shapes = jax.eval_shape(each, common, own, memory)
        out_batched = jax.tree.map(lambda _: True, shapes)
        rows = rows_of(size)
        whole = all(jax.tree.leaves(batched[2]))
        if rows == size or any(jax.tree.leaves(batched[0])) or not (whole and batched[3]):
            return each(common, own, memory), out_batched
        live = jnp.broadcast_to(live, size)
        chosen, place, many = distinct(text, live, rows)

        def few():
            some = jax.tree.map(lambda x, b: x[chosen] if b else x, own, batched[1])
            found = jax.vmap(run, in_axes=(None, axes[1], None, 0))(common, some, memory, chosen)
            return jax.tree.map(lambda x: x[place], found)

        return jax.lax.cond(any_member(many), lambda: each(common, own, memory), few), out_batched

    return one(*operands)


def distinct(
    text: Int[Array, "N S"], live: Bool[Array, "N"], rows: int
) -> tuple[Int[Array, "R"], Int[Array, "N"], Bool[Array, ""]]:
    """The first R particles with distinct texts, each one's place among them, and: are there more?

    Particles that do not live have no text of their own; their place is any.
    """
    same = jnp.all(text[:, None] == text[None], axis=-1) & live[None, :]
    first = jnp.argmax(same, axis=1)
    new = live & (first == jnp.arange(live.shape[0]))
    number = jnp.cumsum(new) - 1
    chosen = jnp.nonzero(new, size=rows, fill_value=0)[0]
    place = jnp.where(live, number[first], 0)
    return chosen, jnp.minimum(place, rows - 1), jnp.sum(new) > rows
