"""A state-space model with unknown parameters, drawn by a program."""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ...ppl.errors import ProgramError
from ...ppl.generative import Request, likelihood
from ...ppl.partial import Choices, as_given, total
from ...ppl.target import Target, as_target


class Parametric(eqx.Module):
    """`Parametric(params, model, args, constraints)`: theta ~ params, then the model at theta.

    `params` is a program (or a Target of one) that returns theta; the model gets theta as the first
    of its args. It is the target of algorithms that move parameters by estimates of the model's
    evidence, and stands for gamma(theta, x) = params(theta) model(x; theta). Sites of `params` must
    have other names than the model's, and happen always.
    """

    params: Target
    target: Target

    def __init__(
        self, params: Any, model: Any, args: tuple = (), constraints: Choices | None = None
    ):
        self.params, self.target = as_target(params), Target(model, args, constraints)

    def at(self, theta: PyTree) -> Target:
        """The model's target given the parameters."""
        target = self.target
        return Target(target.model, (theta, *target.args), target.constraints, target.exponent)

    def draw(self, key: PRNGKeyArray) -> tuple[Choices, Float[Array, ""]]:
        """Parameters from their prior, and their log-weight (constraints and factors), nats."""
        fixed = as_given(self.params.constraints)
        out = self.params.model.run(key, fixed, self.params.args)
        log_weight = self.params.raised(out.weigh(fixed), likelihood(out, fixed))
        return out.choices, log_weight

    def prior(self, choices: Choices) -> tuple[PyTree, Float[Array, ""], Float[Array, ""]]:
        """Theta at these choices, their log density, and what of it is weight (nats).

        The rest is the density that `draw` draws them with.
        """
        params, fixed = self.params, as_given(self.params.constraints)
        out = params.model.run(None, params.joined(choices), params.args, Request(complete=True))
        weight = likelihood(out, fixed)
        log_density = params.raised(total(out.log_probs) + out.log_weight, weight)
        return out.retval, log_density, params.raised(weight, weight)

    def split(self, choices: Choices) -> tuple[Choices, Choices]:
        """Choices of the parameters and of the model."""
        names = set(jax.eval_shape(self.draw, jax.random.key(0))[0])
        first = {name: x for name, x in choices.items() if name in names}
        return first, {name: x for name, x in choices.items() if name not in names}

    def joined(self, params: Choices, choices: Choices) -> Choices:
        """Choices of both in one dict."""
        clash = set(params) & set(choices)
        if clash:
            raise ProgramError(
                f"params and the model both have a site named {sorted(clash)}: give them different "
                "names"
            )
        return {**params, **choices}
