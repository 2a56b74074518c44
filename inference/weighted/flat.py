"""The free sites of a target as one vector of real numbers."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from ...ppl.code import Code
from ...ppl.errors import ProgramError
from ...ppl.generative import given_masks
from ...ppl.partial import Choices, as_given, prune, walk
from ...ppl.target import Target
from .scoring import log_densities


class Draws(eqx.Module):
    """Vectors with log gamma less `scale`, the model's own log density, and the J functions."""

    x: Float[Array, "*batch d"]
    log_gamma: Float[Array, "*batch"]
    log_model: Float[Array, "*batch"]
    f: Float[Array, "*batch J"]


class Flat(eqx.Module):
    """A target whose free sites are all continuous, seen as a density on vectors."""

    target: Target
    functions: Code
    unravel: Callable = eqx.field(static=True)

    def __init__(self, target: Target, functions: Code):
        self.target, self.functions = target, functions
        shapes = jax.eval_shape(lambda key: self._draw(key), jax.random.key(0))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        walk(lambda path, x: _check_real(path, x), zeros)
        self.unravel = ravel_pytree(zeros)[1]

    def _draw(self, key: PRNGKeyArray) -> Choices:
        target = self.target
        out = target.model.run(key, as_given(target.constraints), target.args)
        masks = given_masks(out.log_probs, as_given(target.constraints))
        return prune(walk(_free, out.log_probs, masks, out.choices))

    def from_model(self, key: PRNGKeyArray, n: int) -> Float[Array, "n d"]:
        """The free sites of n runs of the model."""
        return jax.vmap(lambda k: ravel_pytree(self._draw(k))[0])(jax.random.split(key, n))

    def evaluate(self, x: Float[Array, "n d"], scale: Float[Array, ""]) -> Draws:
        """Densities and functions; the functions count as 0 where gamma is 0."""

        def one(x):
            free = self.unravel(x)
            log_gamma, log_q = log_densities(self.target, (None,), free)
            f = jnp.asarray(self.functions(_merged(free, self.target.constraints)))
            if f.ndim != 1 or not jnp.issubdtype(f.dtype, jnp.floating):
                raise ProgramError(
                    f"functions(choices) must be one float array [J], got {f.dtype}{list(f.shape)}"
                )
            impossible = jnp.isneginf(log_gamma[-1])
            f = jnp.where(impossible, jnp.zeros_like(f), f)
            return Draws(x, log_gamma[-1] - scale, log_q[-1, 0], f)

        return jax.vmap(one)(x)


def _free(path, log_prob, given, value):
    if given is True or given is False:
        return None if given else value
    raise ProgramError(
        f"site {'/'.join(path)!r} is given in part: instead give it wholly or not at all"
    )


def _check_real(path, x):
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ProgramError(
            f"site {'/'.join(path)!r} is {x.dtype}, but Gaussian densities are fitted to the free "
            "sites: constrain it, or sum it out in the program"
        )


def _merged(free: Choices, fixed: Choices) -> Choices:
    out = dict(fixed)
    for name, node in free.items():
        both = isinstance(node, dict) and isinstance(out.get(name), dict)
        out[name] = _merged(node, out[name]) if both else node
    return out
