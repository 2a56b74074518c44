"""A program iterated over time."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from ..errors import ProgramError
from ..generative import PLAIN, GenerativeFunction, Outcome, Request
from ..partial import Given
from ..program import as_program
from .branches import check_alike
from .vmap import _checked


class Scan(GenerativeFunction):
    """`ppl.scan`: `program(ctx, carry, x) -> (carry, y)` run over xs, as by `jax.lax.scan`."""

    inner: GenerativeFunction
    length: int | None = eqx.field(static=True)

    def run(
        self, key: PRNGKeyArray | None, given: Given, args: tuple, request: Request = PLAIN
    ) -> Outcome:
        """See `GenerativeFunction.run`. args: (carry,) or (carry, xs); returns (carry, ys)."""
        where = repr("/".join(request.where))
        if len(args) not in (1, 2):
            raise ProgramError(
                f"ppl.scan {where} takes (carry,) or (carry, xs), got {len(args)} arguments: put "
                "what every "
                "step needs into the program with ppl.bind, or into the carry"
            )
        carry, xs = (*args, None)[:2]
        if any(not jnp.shape(x) for x in jax.tree.leaves(xs)):
            raise ProgramError(
                f"ppl.scan {where} got a scalar in xs, which has no time axis: give an array of "
                "one value a "
                "step, or carry the scalar"
            )
        sizes = {jnp.shape(x)[0] for x in jax.tree.leaves(xs)}
        if self.length is not None:
            sizes.add(self.length)
        if len(sizes) != 1:
            raise ProgramError(
                f"ppl.scan {where} has lengths {sorted(sizes)}: pass xs of one length, or length=n"
            )
        length = sizes.pop()
        given = _checked(given, length, request)

        def body(state, inputs):
            carry, log_weight = state
            t, x, given_t = inputs
            step_key = None if key is None else jax.random.fold_in(key, t)
            out = self.inner.run(step_key, given_t, (carry, x), request)
            if not isinstance(out.retval, (tuple, list)) or len(out.retval) != 2:
                raise ProgramError(
                    f"the program of ppl.scan {where} must return a pair (carry, y); return "
                    "(carry, None) "
                    "if it has no outputs"
                )
            new_carry, y = out.retval
            check_alike(carry, new_carry, f"the program of ppl.scan {where}", "carry")
            carry = new_carry
            rest = (out.choices, out.log_probs, out.active, out.reports)
            return (carry, log_weight + out.log_weight), (rest, y)

        start = (jax.tree.map(jnp.asarray, carry), jnp.zeros(()))
        (carry, log_weight), (rest, ys) = jax.lax.scan(
            body, start, (jnp.arange(length), xs, given), length=length
        )
        choices, log_probs, active, reports = rest
        return Outcome(choices, log_probs, active, log_weight, (carry, ys), reports)


def scan(program: Any, length: int | None = None) -> Scan:
    """Iterate a program `(ctx, carry, x) -> (carry, y)`; its sites get a leading time axis.

    The carry is passed on and never stored: a trace holds the choices of every step, not the
    states.
    """
    return Scan(as_program(program), length)
