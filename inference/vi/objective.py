"""Objectives as programs: `f(ctx, *args) -> value`, whose expectation is maximized."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
from jaxtyping import PyTree

from ...ppl.code import Code
from ...ppl.errors import ProgramError
from .context import ObjectiveContext


class Objective(eqx.Module):
    """A function of an objective context, a number in nats; made by `vi.objective`.

    Its value is the expectation over its draws. `vi.value_and_grad` estimates it and its gradient
    in the first argument after the context. Arrays among `bound` come before the arguments.
    """

    code: Code
    bound: tuple = ()

    def __call__(self, ctx: Any, *args: PyTree) -> PyTree:
        """Run inside another objective, its names as if written there."""
        if not isinstance(ctx, ObjectiveContext):
            raise ProgramError(
                f"{self.code.fn.__name__} is an objective: instead of calling it, use "
                "vi.value_and_grad(objective)(key, params, *args)"
            )
        return self.code(ctx, *self.bound, *args)


def objective(fn: Callable) -> Objective:
    """Make an objective from `f(ctx, params, *args) -> scalar`.

    Objectives are compared by their code, as programs are: defining one again compiles nothing.
    """
    if not callable(fn):
        raise ProgramError(f"vi.objective takes a function f(ctx, *args), got {type(fn).__name__}")
    return Objective(Code(fn))
