"""What an algorithm runs on: an unnormalised density over choices."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray, PyTree

from .errors import ProgramError
from .generative import GenerativeFunction, Request, likelihood, redraw
from .hot import drop_hot
from .partial import Choices, agrees, as_given, overlay, spelled, total
from .program import as_program
from .selection import Selection
from .state_space import StateSpace
from .trace import Trace

_COMPLETE = Request(complete=True)


class Target(eqx.Module):
    """The unnormalised density gamma(x) = exp(assess(x with constraints)) over free choices x.

    Its normalizer Z is the evidence; its normalised form the posterior. `model` is a program, a
    combinator or a `StateSpace`; constraints of step sites have a leading axis of `length`.
    `exponent` is a power of the likelihood (the densities of constrained sites, observes and
    factors), None for 1: gamma(x) = p(x) L(x)^exponent.
    """

    model: GenerativeFunction
    args: tuple = ()
    constraints: Choices = eqx.field(default_factory=dict)
    exponent: Float[Array, ""] | None = None

    def __init__(
        self,
        model: Any,
        args: tuple = (),
        constraints: Choices | None = None,
        exponent: ArrayLike | None = None,
    ):
        if not isinstance(args, tuple):
            raise ProgramError(f"args is a tuple of the model's arguments; write args=({args!r},)")
        self.model, self.args, self.constraints = as_program(model), args, dict(constraints or {})
        self.exponent = None if exponent is None else jnp.asarray(exponent, dtype=float)

    def tempered(self, exponent: ArrayLike) -> "Target":
        """The target with its likelihood to a power (0: the prior; of a power, the product)."""
        power = jnp.asarray(exponent, dtype=float)
        power = power if self.exponent is None else power * self.exponent
        return Target(self.model, self.args, self.constraints, power)

    def raised(
        self, log_weight: Float[Array, ""], log_likelihood: Float[Array, ""]
    ) -> Float[Array, ""]:
        """A log weight in which the log likelihood counts once, made to count `exponent` times.

        A likelihood of zero stays zero.
        """
        if self.exponent is None:
            return log_weight
        more = (self.exponent.astype(log_likelihood.dtype) - 1) * log_likelihood
        return jnp.where(jnp.isneginf(log_likelihood), -jnp.inf, log_weight + more)

    def state_space(self) -> StateSpace:
        """The model as a StateSpace: a program is one with no steps."""
        if isinstance(self.model, StateSpace):
            return self.model
        return StateSpace(self.model, _no_step, 0)

    def joined(self, choices: Choices) -> Choices:
        """Choices together with the constraints, as given values."""
        return overlay(as_given(self.constraints), as_given(choices))

    def log_density(
        self, choices: Choices, key: PRNGKeyArray | None = None, request: Request = _COMPLETE
    ) -> Float[Array, ""]:
        """Log gamma(choices), nats; choices may hold the constrained sites too.

        -inf where they contradict a constraint. Needs a key where a density is estimated.
        """
        fixed = as_given(self.constraints)
        out = self.model.run(key, self.joined(choices), self.args, request)
        log_density = self.raised(total(out.log_probs) + out.log_weight, likelihood(out, fixed))
        return jnp.where(agrees(out.log_probs, out.active, fixed, choices), log_density, -jnp.inf)

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
        model, fixed = self.state_space(), as_given(self.constraints)
        out, log_w = redraw(
            lambda given: model.run_to(key, given, self.args, steps), trace, selection, fixed
        )
        new, old = likelihood(out, fixed), likelihood(trace, fixed)
        log_w = self.raised(log_w, new - old)
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
