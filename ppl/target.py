"""What an algorithm runs on: an unnormalised density over choices."""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .errors import ProgramError
from .generative import GenerativeFunction, redraw
from .hot import drop_hot
from .partial import Choices, as_given, overlay, spelled
from .program import as_program
from .selection import Selection
from .state_space import StateSpace
from .trace import Trace


class Target(eqx.Module):
    """The unnormalised density gamma(x) = exp(assess(x with constraints)) over free choices x.

    Its normalizer Z is the evidence; its normalised form the posterior. `model` is a program, a
    combinator or a `StateSpace`; constraints of step sites have a leading axis of `length`.
    """

    model: GenerativeFunction
    args: tuple = ()
    constraints: Choices = eqx.field(default_factory=dict)

    def __init__(self, model: Any, args: tuple = (), constraints: Choices | None = None):
        if not isinstance(args, tuple):
            raise ProgramError(f"args is a tuple of the model's arguments; write args=({args!r},)")
        self.model, self.args, self.constraints = as_program(model), args, dict(constraints or {})

    def state_space(self) -> StateSpace:
        """The model as a StateSpace: a program is one with no steps."""
        if isinstance(self.model, StateSpace):
            return self.model
        return StateSpace(self.model, _no_step, 0)

    def joined(self, choices: Choices) -> Choices:
        """Choices together with the constraints, as given values."""
        return overlay(as_given(self.constraints), as_given(choices))

    def log_density(self, choices: Choices, key: PRNGKeyArray | None = None) -> Float[Array, ""]:
        """Log gamma(choices), nats; choices may hold the constrained sites too.

        Needs a key where a density is estimated.
        """
        return self.model.assess(self.joined(choices), *self.args, key=key)[0]

    def regenerate(
        self,
        key: PRNGKeyArray,
        trace: Trace,
        selection: Selection,
        steps: Int[Array, ""] | None = None,
    ) -> tuple[Trace, Float[Array, ""], PyTree]:
        """Draw selected free choices anew, see `GenerativeFunction.regenerate`.

        With `steps` the target is the model's first so many steps. Returns the trace, with
        activity written out, the log Metropolis-Hastings ratio and the model's whole state, hot
        parts included.
        """
        model = self.state_space()
        out, log_w = redraw(
            lambda given: model.run_to(key, given, self.args, steps),
            trace,
            selection,
            as_given(self.constraints),
        )
        trace = eqx.tree_at(
            lambda t: (t.retval, t.active),
            out.trace(),
            (drop_hot(out.retval), spelled(out.active, out.log_probs)),
            is_leaf=lambda x: x is out.active,
        )
        return trace, log_w, out.retval


def as_target(x: Any) -> Target:
    """A target as it is; a model that needs no args stands for its own target."""
    return x if isinstance(x, Target) else Target(x)


def _no_step(ctx, state, t, *args):
    return state
