"""A mixture of programs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import PRNGKeyArray

from ..context import Context
from ..errors import ProgramError
from ..generative import PLAIN, GenerativeFunction, Outcome, Request
from ..partial import Given
from ..program import as_program
from .branches import merged, run_if
from .cond import select_retval


class Mix(GenerativeFunction):
    """`ppl.mix(*programs)`, called with (logits, *args)."""

    components: tuple[GenerativeFunction, ...]

    def run(
        self, key: PRNGKeyArray | None, given: Given, args: tuple, request: Request = PLAIN
    ) -> Outcome:
        """See `GenerativeFunction.run`.

        Law: site "component" by the logits, then that program's law.
        """
        logits, *rest = args or (0.0,)
        n = len(self.components)
        if jnp.shape(logits) != (n,):
            raise ProgramError(
                f"ppl.mix {'/'.join(request.where)!r} of {n} programs needs logits of shape "
                f"({n},) first, got {jnp.shape(logits)}"
            )
        names = [str(i) for i in range(n)]
        unknown = set(given) - {"component", *names}
        if unknown:
            raise ProgramError(
                f"values were given for {sorted(unknown)} under {'/'.join(request.where)!r}: a "
                f"mix has 'component' and {names}"
            )
        chooser = Context(key, {k: v for k, v in given.items() if k == "component"}, request)
        component = chooser.sample("component", dist.CategoricalLogits(logits))
        chosen = chooser.finish(component)
        key = None if key is None else jax.random.fold_in(key, 1)
        flags = [component == i for i in range(n)]
        outcomes = {
            name: run_if(flag, program, key, given.get(name, {}), tuple(rest), request.inside(name))
            for name, flag, program in zip(names, flags, self.components, strict=True)
        }
        out = merged(outcomes, select_retval(flags, [o.retval for o in outcomes.values()], request))
        reports = None if out.reports is None else {**chosen.reports, **out.reports}
        return Outcome(
            {**chosen.choices, **out.choices},
            {**chosen.log_probs, **out.log_probs},
            out.active,
            out.log_weight,
            out.retval,
            reports,
        )


def mix(*programs: Any) -> Mix:
    """A mixture: `ctx.call(name, ppl.mix(f, g, h), logits, *args)` draws which program runs.

    Choices: "component", and under "0", "1", ... those of each program; zeros where it did not run.
    """
    if not programs:
        raise ProgramError("ppl.mix needs at least one program")
    return Mix(tuple(as_program(p) for p in programs))
