"""What an inference algorithm is, so that it can nest in programs."""

import abc
from typing import Any

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray

from .partial import Choices
from .target import Target


class Algorithm(eqx.Module):
    """Returns a properly weighted population for a target: E[w f(x)] = Z E_post[f(x)].

    As a sampler its output law q (pick one particle by weight) has an estimated density, so that
    an algorithm is a distribution for `ppl.normalize` (Lew et al. 2023; Andrieu, Doucet,
    Holenstein 2010).
    """

    @abc.abstractmethod
    def run(self, key: PRNGKeyArray, target: Any, **options: Any) -> Any:
        """The weighted population, `inference.Particles`."""

    @abc.abstractmethod
    def run_conditional(self, key: PRNGKeyArray, target: Any, retained: Choices) -> Any:
        """The population when one particle is made to be `retained`.

        E[1/Z-hat] = 1/Z if retained is a posterior draw.
        """

    @abc.abstractmethod
    def random_weighted(
        self, key: PRNGKeyArray, target: Target
    ) -> tuple[Choices, Float[Array, ""]]:
        """A draw x ~ q and log w with E[1/w | x] = 1/q(x)."""

    @abc.abstractmethod
    def estimate_logpdf(
        self, key: PRNGKeyArray, target: Target, choices: Choices
    ) -> Float[Array, ""]:
        """Log w with E[w] = q(choices), by a run in which `choices` is retained."""
