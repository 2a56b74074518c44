"""A choice between two programs by a traced boolean."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from ..errors import ProgramError
from ..generative import PLAIN, GenerativeFunction, Outcome, Request
from ..partial import Given
from ..program import as_program
from .branches import merged, run_if


def select_retval(flags: list, retvals: list, request: Request):
    """The return value of the branch that was taken; all have to be of one structure."""
    shapes = [jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), r) for r in retvals]
    if any(shape != shapes[0] for shape in shapes[1:]):
        raise ProgramError(
            f"the branches of {'/'.join(request.where)!r} return different shapes or types: "
            f"{shapes}. Make them alike"
        )
    out = retvals[-1]
    for flag, retval in zip(flags[:-1], retvals[:-1], strict=True):
        out = jax.tree.map(lambda a, b, flag=flag: jnp.where(flag, a, b), retval, out)
    return out


class Cond(GenerativeFunction):
    """`ppl.cond(if_true, if_false)`, called with (predicate, *args)."""

    if_true: GenerativeFunction
    if_false: GenerativeFunction

    def run(
        self, key: PRNGKeyArray | None, given: Given, args: tuple, request: Request = PLAIN
    ) -> Outcome:
        """See `GenerativeFunction.run`. Law: that of the branch the predicate names."""
        predicate, *rest = args or (0.0,)
        predicate = jnp.asarray(predicate)
        if predicate.dtype != bool or predicate.shape:
            raise ProgramError(
                f"ppl.cond {'/'.join(request.where)!r} needs a boolean scalar first, got "
                f"{predicate.dtype}{predicate.shape}"
            )
        unknown = set(given) - {"true", "false"}
        if unknown:
            raise ProgramError(
                f"values were given for {sorted(unknown)} under {'/'.join(request.where)!r}: a "
                "cond keeps its choices under 'true' and 'false'"
            )
        flags = {"true": predicate, "false": ~predicate}
        branches = {"true": self.if_true, "false": self.if_false}
        outcomes = {
            name: run_if(
                flags[name],
                branches[name],
                key,
                given.get(name, {}),
                tuple(rest),
                request.inside(name),
            )
            for name in branches
        }
        retval = select_retval(list(flags.values()), [o.retval for o in outcomes.values()], request)
        return merged(outcomes, retval)


def cond(if_true: Any, if_false: Any) -> Cond:
    """Run one of two programs: `ctx.call(name, ppl.cond(f, g), predicate, *args)`.

    Choices are kept under "true" and "false"; those of the branch not taken are zeros with log
    density 0. No gradient passes through it, so it cannot produce NaN. `update` and `regenerate`
    that flip the predicate draw the new branch.
    """
    return Cond(as_program(if_true), as_program(if_false))
