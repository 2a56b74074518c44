"""Programs: Python functions that say what is random."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import PRNGKeyArray, PyTree

from .code import Code
from .context import Context
from .errors import ProgramError
from .generative import PLAIN, GenerativeFunction, Outcome, Request
from .partial import Given


class Program(GenerativeFunction):
    """A generative function written as `f(ctx, *args)`; made by the decorator `ppl.program`.

    `f` is ordinary Python, run at JAX trace time. It samples through `ctx`, and may return any
    tree of arrays. Arrays among `bound` are leading arguments.
    """

    code: Code
    bound: tuple = ()

    def __call__(self, ctx: Context, *args: PyTree) -> PyTree:
        """Run the function inside another program, its sites as if written there."""
        if not isinstance(ctx, Context):
            raise ProgramError(
                f"{self.code.fn.__name__} is a program: instead of calling it, use .simulate(key, "
                "...), "
                ".generate(...) and the other operations, or ctx.call(name, program, ...) inside "
                "a program"
            )
        return self.code(ctx, *self.bound, *args)

    def run(
        self, key: PRNGKeyArray | None, given: Given, args: tuple, request: Request = PLAIN
    ) -> Outcome:
        """See `GenerativeFunction.run`."""
        ctx = Context(key, given, request)
        retval = self(ctx, *args)
        for leaf in jax.tree.leaves(retval, is_leaf=lambda x: isinstance(x, dist.Distribution)):
            if not isinstance(leaf, (jax.Array, int, float, bool, complex)) and not hasattr(
                leaf, "dtype"
            ):
                raise ProgramError(
                    f"{self.code.fn.__name__} returned a {type(leaf).__name__}; programs return "
                    "arrays or trees of arrays"
                )
        return ctx.finish(jax.tree.map(_strong, retval))


def _strong(x):
    x = jnp.asarray(x)
    return jax.lax.convert_element_type(x, x.dtype) if x.weak_type else x


def program(fn: Callable) -> Program:
    """Make a program from `f(ctx, *args)`.

    Programs hash by their code, defaults, closure and the globals they name: defining the same
    function again compiles nothing again. A closed-over array becomes a constant; above 1 MB that
    is an error that says `bind`.
    """
    if not callable(fn):
        raise ProgramError(
            f"needs a program or a function f(ctx, *args), got {type(fn).__name__}: a distribution "
            "is drawn with ctx.sample(name, distribution) inside a program"
        )
    return Program(Code(fn))


def as_program(fn: Any) -> GenerativeFunction:
    """A generative function as it is, a plain function as a program."""
    return fn if isinstance(fn, GenerativeFunction) else program(fn)


def bind(target: Any, *args: PyTree) -> Any:
    """Fix the leading `*args` of a program, a StateSpace, a Proposal or a Twist.

    The arrays become leaves of the program: shared by all particles (unbatched under the particle
    `vmap`) and never constants of the compiled code, so new values compile nothing. Python
    numbers become arrays.
    """
    args = tuple(
        jax.tree.map(
            lambda x: (
                jnp.asarray(x) if isinstance(x, (int, float)) and not isinstance(x, bool) else x
            ),
            a,
        )
        for a in args
    )
    if isinstance(target, Program):
        return eqx.tree_at(
            lambda p: p.bound, target, target.bound + args, is_leaf=lambda x: x is target.bound
        )
    if hasattr(target, "bind"):
        return target.bind(*args)
    if callable(target) and not isinstance(target, GenerativeFunction):
        return bind(program(target), *args)
    raise ProgramError(f"bind takes a program or a StateSpace, got {type(target).__name__}")
