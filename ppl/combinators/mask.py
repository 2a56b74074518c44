"""A program that may not run."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from ..errors import ProgramError
from ..generative import PLAIN, GenerativeFunction, Outcome, Request
from ..partial import Given
from ..program import as_program
from .branches import run_if


class Mask(GenerativeFunction):
    """`ppl.mask(program)`, called with (flag, *args)."""

    inner: GenerativeFunction

    def run(
        self, key: PRNGKeyArray | None, given: Given, args: tuple, request: Request = PLAIN
    ) -> Outcome:
        """See `GenerativeFunction.run`. Law: the program's where flag holds, nothing elsewhere."""
        flag, *rest = args or (0.0,)
        flag = jnp.asarray(flag)
        if flag.dtype != bool or flag.shape:
            raise ProgramError(
                f"ppl.mask {'/'.join(request.where)!r} needs a boolean scalar first, got "
                f"{flag.dtype}{flag.shape}"
            )
        return run_if(flag, self.inner, key, given, tuple(rest), request)


def mask(program: Any) -> Mask:
    """Run a program where a traced flag holds: `ctx.call(name, ppl.mask(f), flag, *args)`.

    Where it does not, choices and return value are zeros, log densities and weights 0.
    """
    return Mask(as_program(program))
