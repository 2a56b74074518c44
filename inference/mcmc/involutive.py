"""Involutive Markov chain Monte Carlo.

Neklyudov, Welling, Egorov and Vetrov 2020, "Involutive MCMC: a unifying framework", algorithm 1;
for programs Cusumano-Towner, Lew and Mansinghka 2020, "Automating involutive MCMC using
probabilistic and differentiable programming".
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from ...ppl.code import Code
from ...ppl.combinators.branches import check_alike
from ...ppl.generative import GenerativeFunction, Request
from ...ppl.partial import agrees, as_given, spelled, total, walk
from ...ppl.program import as_program
from .kernel import Kernel
from .transition import at, log_gamma, log_uniform, settle, where_happened, written


class Involutive(Kernel):
    """`Involutive(auxiliary, involution)`: draw auxiliary choices, map, accept or not.

    `auxiliary(ctx, choices, *args)` is a program of the current choices; `involution(choices,
    auxiliary_choices, *args) -> (choices, auxiliary_choices)` is its own inverse and returns trees
    like those it is given (for example `{**choices, "x": ...}`). The Jacobian of the map on the
    floating-point choices that happen, its discrete arguments held fixed, is taken by `jax.jacfwd`;
    `volume_preserving=True` says that its determinant is 1 or -1 and saves it.

    Moves between traces in which different sites happen are allowed where the numbers of
    floating-point choices (auxiliary ones counted) agree; zeros stand for what does not happen.
    A move is rejected where they do not, where the map applied again does not lead back (up to
    rounding), and where it changes a constrained site.
    """

    auxiliary: GenerativeFunction
    involution: Code
    volume_preserving: bool = eqx.field(static=True)

    def __init__(self, auxiliary: Any, involution: Callable, volume_preserving: bool = False):
        self.auxiliary, self.involution = as_program(auxiliary), Code(involution)
        self.volume_preserving = volume_preserving

    def move(self, key, target, chain, steps=None):
        """See `Kernel.move`."""
        keys = jax.random.split(key, 4)
        old, args = written(chain.trace), target.args
        draft = self.auxiliary.run(keys[0], {}, (old.choices, *args), Request(weightless=True))
        start = (old.choices, draft.choices)

        def mapped(pair):
            new = self.involution(*pair, *args)
            if isinstance(new, list):
                new = tuple(new)
            check_alike(start, new, "the involution", "pair (choices, auxiliary choices)")
            return new

        choices, auxiliary = mapped(start)
        new, state = at(target, choices, steps, keys[1])
        fixed = as_given(target.constraints)
        agree = agrees(new.log_probs, new.active, fixed, choices)
        back = self.auxiliary.run(
            keys[2], as_given(auxiliary), (new.choices, *args), Request(complete=True)
        )
        here = (old.active, spelled(draft.active, draft.log_probs))
        there = (new.active, spelled(back.active, back.log_probs))
        happened = _happened((old.log_probs, draft.log_probs), start, here)
        happens = _happened((new.log_probs, back.log_probs), start, there)
        returns = _close(happened, start, mapped((new.choices, back.choices)))
        log_volume = (
            jnp.zeros(())
            if self.volume_preserving
            else _log_volume(mapped, start, happened, happens)
        )
        log_ratio = (
            log_gamma(target, new)
            - log_gamma(target, old)
            + total(back.log_probs)
            - total(draft.log_probs)
            + log_volume
        )
        accept = agree & returns & (log_uniform(keys[3], log_ratio) < log_ratio)
        return settle(accept, chain, new, state)


def _happened(log_probs: Any, pair: Any, active: Any) -> Any:
    """For each leaf of (choices, auxiliary choices) which of its entries happened."""
    return tuple(
        walk(lambda _, lp, value, a: where_happened(a, value), *trees)
        for trees in zip(log_probs, pair, active, strict=True)
    )


def _close(happened: Any, a: Any, b: Any) -> Bool[Array, ""]:
    """Are the entries that happened the same, up to rounding?"""

    def leaf(here, x, y):
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return jnp.all((x == y) | ~here)
        slack = 100 * jnp.finfo(x.dtype).eps ** 0.75
        return jnp.all((jnp.abs(x - y) <= slack * (1 + jnp.abs(x))) | ~here)

    return jnp.all(jnp.stack(jax.tree.leaves(jax.tree.map(leaf, happened, a, b))))


def _log_volume(mapped: Callable, pair: Any, happened: Any, happens: Any) -> Float[Array, ""]:
    """Log |det| of the Jacobian between the floating-point entries that happen; -inf if not square.

    Rows and columns that happen are sorted to the front; ones on the diagonal fill the rest.
    """
    floats, rest = eqx.partition(pair, eqx.is_inexact_array)
    flat, unravel = ravel_pytree(floats)
    if not flat.size:
        return jnp.zeros(())

    def on_floats(flat):
        new = mapped(eqx.combine(unravel(flat), rest))
        return ravel_pytree(eqx.filter(new, eqx.is_inexact_array))[0]

    def entries(active):
        kept = jax.tree.map(lambda a, x: a if eqx.is_inexact_array(x) else None, active, pair)
        return ravel_pytree(kept)[0]

    columns, rows = entries(happened), entries(happens)
    jacobian = jax.jacfwd(on_floats)(flat)
    jacobian = jacobian[jnp.argsort(~rows, stable=True)][:, jnp.argsort(~columns, stable=True)]
    count = jnp.sum(columns, dtype=jnp.int32)
    inside = jnp.arange(flat.size, dtype=jnp.int32) < count
    block = jnp.where(
        inside[:, None] & inside[None], jacobian, jnp.eye(flat.size, dtype=flat.dtype)
    )
    log_volume = jnp.linalg.slogdet(block)[1]
    return jnp.where(jnp.sum(rows, dtype=jnp.int32) == count, log_volume, -jnp.inf)
