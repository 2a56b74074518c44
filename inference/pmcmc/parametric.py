"""A state-space model with unknown parameters, drawn by a program."""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ...ppl.errors import ProgramError
from ...ppl.generative import Outcome, Request, likelihood
from ...ppl.partial import Choices, as_given, total
from ...ppl.target import Target, as_target


class Prior(eqx.Module):
    """Choices of the parameters, what they give, and log densities (nats).

    `log_weight` is the part of `log_density` that is weight (constraints and factors); the rest is
    the density that `Parametric.draw` draws them with. A density that is only estimated
    (`marginal`, `normalize`) is estimated once, here.
    """

    choices: Choices
    theta: PyTree
    log_density: Float[Array, ""]
    log_weight: Float[Array, ""]


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

    def draw(self, key: PRNGKeyArray) -> Prior:
        """Parameters from their prior."""
        fixed = as_given(self.params.constraints)
        return self._prior(self.params.model.run(key, fixed, self.params.args))

    def prior(self, choices: Choices, key: PRNGKeyArray | None = None) -> Prior:
        """The parameters at these choices; a key where a density is estimated."""
        params = self.params
        request = Request(complete=True)
        return self._prior(params.model.run(key, params.joined(choices), params.args, request))

    def _prior(self, out: Outcome) -> Prior:
        params, fixed = self.params, as_given(self.params.constraints)
        weight = likelihood(out, fixed)
        log_density = params.raised(total(out.log_probs) + out.log_weight, weight)
        log_weight = params.raised(out.weigh(fixed), weight)
        return Prior(out.choices, out.retval, log_density, log_weight)

    def split(self, choices: Choices) -> tuple[Choices, Choices]:
        """Choices of the parameters and of the model."""
        names = set(jax.eval_shape(self.draw, jax.random.key(0)).choices)
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
