"""A program that samples a prior, what it is the prior of, and data: problems of inference.

The meta-prior of Whittle, Ziomek, Rawling and Osborne (2025), "Distribution Transformers",
section 3. With other data in place of the prior's parameters it serves any amortized posterior.
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from ...inference.vi.guides.layout import Layout, layout
from ...ppl.code import Code
from ...ppl.errors import ProgramError
from ...ppl.generative import GenerativeFunction
from ...ppl.partial import Choices
from ...ppl.program import as_program
from ...ppl.target import Target
from .mixtures import Mixture


class Problem(eqx.Module):
    """One draw of a meta-prior: `position` are the coordinates of its latent sites.

    `prior` and `data` are what a network is shown; `rest` are the choices besides the latent ones.
    """

    prior: PyTree
    data: dict[str, Array]
    observed: dict[str, Bool[Array, "*batch n"]] | None
    position: Float[Array, "*batch d"]
    rest: Choices


class MetaPrior(eqx.Module):
    """Draws problems from a program, and has their densities; see `meta_prior`."""

    program: GenerativeFunction
    prior_features: Code
    data_features: Code
    latent: tuple[str, ...] = eqx.field(static=True)
    layout: Layout = eqx.field(static=True)

    def draw(self, key: PRNGKeyArray) -> Problem:
        """A problem."""
        trace = self.program.simulate(key)
        prior, data, observed = _returned(trace.retval)
        rest = {name: x for name, x in trace.choices.items() if name not in self.latent}
        return Problem(prior, data, observed, self.layout.position(trace.choices), rest)

    def target(self, problem: Problem) -> Target:
        """The posterior of the latent sites: the program with all other sites as they are."""
        return Target(self.program, (), problem.rest)

    def log_joint(self, problem: Problem, position: Float[Array, " d"]) -> Float[Array, ""]:
        """Log density of the target with respect to the coordinates, nats."""
        return self.layout.log_density(self.target(problem), position)


def meta_prior(
    program: Any,
    latent: Sequence[str],
    *,
    prior_features: Callable | None = None,
    data_features: Callable | None = None,
    key: PRNGKeyArray | None = None,
) -> MetaPrior:
    """The meta-prior of a program that returns `(prior, data)` or `(prior, data, observed)`.

    Args:
        program: samples the parameters of a prior, the latent sites and data. It returns `prior`, a
            `Mixture` (then the latent sites have that law, in their coordinates) or any tree of
            arrays, and `data`, a dict from the name of a source to an array [n, ...] of n
            observations; `observed`, booleans [n] a source, says which of them count.
        latent: the names of the sites whose posterior is wanted. Coordinates are NumPyro's
            `biject_to(support)`, so that bounded parameters are no special case; supports must
            not depend on other sites.
        prior_features: `prior -> [p]`, what a network reads of a prior that is no mixture;
            default: all numbers x, and asinh(x).
        data_features: `(source, observation [...]) -> [f]`; default likewise.
        key: of the two runs that the sites are read from.
    """
    made = as_program(program)
    key = jax.random.key(0) if key is None else key

    draw = jax.jit(lambda key: made.simulate(key).choices)

    def sites(key):
        choices = draw(key)
        if missing := [name for name in latent if name not in choices]:
            raise ProgramError(
                f"latent {missing} are no sites of the program, whose sites are {sorted(choices)}"
            )
        rest = {name: x for name, x in choices.items() if name not in latent}
        return layout(Target(made, (), rest))

    one, two = (sites(k) for k in jax.random.split(key))
    if one != two:
        raise ProgramError(
            "the support of a latent site depends on other sites: let the program draw a "
            "standardized value and compute this one from it"
        )
    features = Code(prior_features or _prior_features), Code(data_features or _data_features)
    return MetaPrior(made, *features, tuple(latent), one)


def _returned(retval: Any) -> tuple[Any, dict[str, Array], Any]:
    if (
        not isinstance(retval, tuple)
        or len(retval) not in (2, 3)
        or not isinstance(retval[1], dict)
    ):
        raise ProgramError(
            "a meta-prior's program returns (prior, data) or (prior, data, observed): data is a "
            "dict from the name of a source to an array [n, ...]"
        )
    prior, data = retval[:2]
    for name, x in data.items():
        if jnp.ndim(x) == 0:
            raise ProgramError(f"data {name!r} is a number: give an array [n, ...], x[None] say")
    return prior, data, retval[2] if len(retval) == 3 else None


def _prior_features(prior: PyTree) -> Float[Array, " p"]:
    if isinstance(prior, Mixture):
        raise TypeError("a mixture's components are read one by one")
    return _both(jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(prior)]))


def _data_features(source: str, observation: Float[Array, "..."]) -> Float[Array, " f"]:
    return _both(jnp.ravel(observation))


def _both(x: Float[Array, " n"]) -> Float[Array, " m"]:
    x = x.astype(jnp.result_type(float))
    return jnp.concatenate([x, jnp.arcsinh(x)])
