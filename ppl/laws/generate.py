"""The law of `generate`: one draw and its weight are properly weighted."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..enumeration import enumerate
from ..generative import GenerativeFunction
from ..partial import Choices
from ..target import Target
from .proper_weighting import weighting
from .result import LawResult, decide

DRAWS = 16

ADVICE = (
    "generate's weight is not the density of what was constrained. Look for a constrained site "
    "that is drawn again, or for an observe or factor whose weight is lost."
)


class _Draws(eqx.Module):
    log_weights: Float[Array, " n"]
    choices: Choices
    log_evidence: Float[Array, ""]


class Generate(eqx.Module):
    """Independent draws by `generate`, as an algorithm."""

    def run(self, key: PRNGKeyArray, target: Target) -> _Draws:
        """A population of independent draws."""

        def one(key):
            return target.model.generate(key, target.constraints, *target.args)

        traces, log_w = jax.vmap(one)(jax.random.split(key, DRAWS))
        log_z = jax.nn.logsumexp(log_w) - jnp.log(jnp.asarray(DRAWS, log_w.dtype))
        return _Draws(log_w, traces.choices, log_z)


def generate(
    key: PRNGKeyArray,
    program: GenerativeFunction,
    *args: PyTree,
    constraints: Choices | None = None,
    runs: int = 2**14,
) -> LawResult:
    """Check `generate` of a finite program against enumeration.

    Law: E[exp(log_w) f(choices)] is the sum of exp(assess(x)) f(x) over all x that agree with the
    constraints.
    """
    target = Target(program, args, constraints)
    posterior = enumerate(target)
    return decide("generate", weighting(Generate(), target, posterior), key, runs, ADVICE)
