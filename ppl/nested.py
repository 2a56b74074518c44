"""Inference as a distribution: `marginal` and `normalize` (Lew et al. 2023).

Both sample and estimate densities through an `Algorithm`; where the algorithm needs the density
of a value it retains that value in a conditional run, so that the estimates are unbiased for
adaptive resampling too.
"""

from typing import Any

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from .algorithm import Algorithm
from .errors import ProgramError
from .estimated import EstimatedDistribution
from .generative import Request
from .partial import Choices, prune, walk
from .selection import Selection
from .target import Target, as_target


class Normalize(EstimatedDistribution):
    """See `normalize`."""

    target: Target
    algorithm: Algorithm

    def random_weighted(self, key: PRNGKeyArray) -> tuple[Choices, Float[Array, ""]]:
        """See `EstimatedDistribution.random_weighted`."""
        return self.algorithm.random_weighted(key, self.target)

    def estimate_logpdf(self, key: PRNGKeyArray, value: Choices) -> Float[Array, ""]:
        """See `EstimatedDistribution.estimate_logpdf`."""
        return self.algorithm.estimate_logpdf(key, self.target, value)


class Marginal(EstimatedDistribution):
    """See `marginal`."""

    target: Target
    selection: Selection
    algorithm: Algorithm

    def random_weighted(self, key: PRNGKeyArray) -> tuple[Choices, Float[Array, ""]]:
        """See `EstimatedDistribution.random_weighted`."""
        key_draw, key_run = jax.random.split(key)
        trace, _ = self.target.model.generate(key_draw, self.target.constraints, *self.target.args)
        value, rest = split_choices(self.selection, trace.log_probs, trace.choices)
        particles = self.algorithm.run_conditional(key_run, self._given(value), rest)
        return value, particles.log_evidence

    def estimate_logpdf(self, key: PRNGKeyArray, value: Choices) -> Float[Array, ""]:
        """See `EstimatedDistribution.estimate_logpdf`."""
        return self.algorithm.run(key, self._given(value)).log_evidence

    def _given(self, value: Choices) -> Target:
        return Target(self.target.model, self.target.args, self.target.joined(value))


def split_choices(
    selection: Selection, log_probs: Any, choices: Choices
) -> tuple[Choices, Choices]:
    """Choices in and out of a selection of whole sites."""
    masks = selection.masks(log_probs)

    def pick(wanted: bool):
        def leaf(path, mask, value):
            if not isinstance(mask, bool):
                raise ProgramError(
                    f"a marginal keeps whole sites, but the selection cuts {'/'.join(path)!r} by "
                    "steps: select it by name"
                )
            return value if mask is wanted else None

        return prune(walk(leaf, masks, choices))

    return pick(True), pick(False)


def normalize(target: Any, algorithm: Algorithm) -> Normalize:
    """The posterior of a target as a distribution: `ctx.sample(name, ppl.normalize(...))`.

    Law: the algorithm's output law q, which tends to the posterior as its budget grows; its
    density is estimated without bias, so that a proposal or guide that uses it is properly
    weighted at any budget. The value is the target's choices.
    """
    return Normalize(as_target(target), algorithm)


def marginal(target: Any, selection: Selection, algorithm: Algorithm) -> Marginal:
    """The law of the selected choices of a program, the others integrated out by the algorithm.

    Law: exactly the program's marginal; density estimates E[w] = p(x) and E[1/w | x] = 1/p(x),
    the latter times the probability that a run of the algorithm at x survives (1 unless the rest of
    the program can make x impossible): as a proposal give it an algorithm that does not die. The
    program has to be a normalized law: constraints, an `observe` or a `factor` are an error.
    """
    target = as_target(target)
    if target.constraints:
        raise ProgramError(
            "ppl.marginal takes a program without constraints: use ppl.normalize for a posterior"
        )
    request = Request(weightless=True)
    jax.eval_shape(lambda key: target.model.run(key, {}, target.args, request), jax.random.key(0))
    return Marginal(target, selection, algorithm)
