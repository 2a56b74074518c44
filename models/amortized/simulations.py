"""A program's own draws as training data: latent coordinates, and values of the observed sites."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from ...inference.vi.guides.layout import Layout, layout
from ...ppl.compiled import compiled
from ...ppl.errors import ProgramError
from ...ppl.generative import GenerativeFunction, Request
from ...ppl.partial import Choices, walk
from ...ppl.target import Target
from .inputs import Observed, Values

_PURE = Request(weightless=True)


def draws(key: PRNGKeyArray, program: GenerativeFunction, args: tuple, n: int) -> Choices:
    """Choices [n, ...] of n runs."""
    keys = jax.random.split(key, n)
    return jax.vmap(lambda k: program.run(k, {}, args, _PURE).choices)(keys)


@compiled
def simulated(key: PRNGKeyArray, program: GenerativeFunction, args: tuple, n: int) -> Choices:
    """The same, compiled."""
    return draws(key, program, args, n)


@compiled
def positions(place: Layout, choices: Choices) -> Array:
    """The latent coordinates [n, d]."""
    return jax.vmap(place.position)(choices)


def layouts(
    program: GenerativeFunction,
    args: tuple,
    choices: Choices,
    observed: tuple[str, ...],
    latents: Sequence[str] | None,
) -> tuple[tuple[Observed, ...], Layout]:
    """The observed sites, and the layout of the latent ones."""
    wanted = sorted(set(choices) - set(observed)) if latents is None else list(latents)
    missing = sorted((set(observed) | set(wanted)) - set(choices))
    if missing or not observed or not wanted or set(observed) & set(wanted):
        raise ProgramError(
            f"observed={list(observed)} and latents={wanted} must be different sites among the "
            f"program's, {sorted(choices)}, at least one of each"
        )
    discrete = []

    def check(path, x):
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            discrete.append("/".join(path))

    walk(check, {name: choices[name] for name in wanted})
    if discrete:
        raise ProgramError(
            f"the latents {discrete} are discrete, and a density is of continuous sites: name the "
            "continuous ones, latents=[...] (the others are then integrated out), sum them out in "
            "the program (ppl.marginal), or train a classifier of them as a law of their own"
        )
    places = []
    for i in range(2):
        rest = {name: jax.tree.map(lambda x, i=i: x[i], choices[name]) for name in choices}
        fixed = {name: node for name, node in rest.items() if name not in wanted}
        places.append(layout(Target(program, args, fixed)))
    if places[0] != places[1]:
        raise ProgramError(
            "the support of a latent site depends on other sites: let the program draw a "
            "standardized value and compute this one from it"
        )
    one = jax.eval_shape(lambda k: program.run(k, {}, args, _PURE), jax.random.key(0))
    sites: list[Observed] = []

    def leaf(path, log_prob, x):
        n = log_prob.ndim
        whole = not jnp.issubdtype(x.dtype, jnp.inexact)
        sites.append(Observed(path, x.shape[:n], x.shape[n:], whole))

    names = {name: one.log_probs[name] for name in observed}
    walk(leaf, names, {name: one.choices[name] for name in observed})
    return tuple(sites), places[0]


def observations(sites: tuple[Observed, ...], choices: Choices) -> Values:
    """Observed values [n, *instances, numbers] as floats."""
    out = []
    for site in sites:
        node: Any = choices
        for name in site.path:
            node = node[name]
        x = jnp.asarray(node)
        out.append(x.reshape(x.shape[0], *site.instances, site.numbers).astype(float))
    return tuple(out)


def checked(sites: tuple[Observed, ...], values: Values) -> Values:
    """The values, or an error if a number is not finite."""
    for site, x in zip(sites, values, strict=True):
        bad = ~jnp.all(jnp.isfinite(x.reshape(x.shape[0], -1)), axis=1)
        if bool(jnp.any(bad)):
            raise ProgramError(
                f"{int(bad.sum())} of {x.shape[0]} simulations have numbers at {site.name!r} that "
                "are not finite: leaving them out would change the posterior. Let the program "
                "draw a finite value there, for instance a flag that the simulation failed"
            )
    return values
