"""Sobol' indices, first-order and total, of a function of independent inputs, from one sample.

Pick-freeze forms: first-order Sobol' (2001), total Jansen (1999); as the worked example of
Demange-Chryst, Bachoc and Morio (2022), section 5.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.stats import norm
from jaxtyping import Array, Float, PRNGKeyArray

from ...ppl.distributions import third_party
from ...ppl.program import bind, program
from ...ppl.target import Target
from .control_variates import Expectations, MultipleExpectations


class SobolIndices(eqx.Module):
    """Indices of d inputs: `first` [d] and `total` [d] with standard errors, mean and variance.

    Input i alone explains the share first_i of the variance; total_i is what would be left if all
    others were fixed. Both are ratios of unbiased estimates, so consistent; the errors are by the
    delta method. `expectations` are those estimates: E[Y Y_i], E[(Y - Y'_i)^2] / 2, E[Y], E[Y^2].
    """

    first: Float[Array, "*batch d"]
    total: Float[Array, "*batch d"]
    first_errors: Float[Array, "*batch d"]
    total_errors: Float[Array, "*batch d"]
    mean: Float[Array, "*batch"]
    variance: Float[Array, "*batch"]
    expectations: Expectations


def sobol_indices(
    key: PRNGKeyArray,
    f: Callable[[Float[Array, "d"]], Float[Array, ""]],
    inputs: dist.Distribution,
    budget: int,
    **options,
) -> SobolIndices:
    """The indices of y = f(x), x ~ `inputs`, of batch shape [d] with independent components.

    All 2 d + 2 expectations are estimated from one sample by `MultipleExpectations`, which the
    `options` go to; of each of the `budget` draws f is evaluated 2 d + 1 times. The inputs are
    quantiles of standard normals, so `inputs` needs `icdf`. The importance sampling part is good
    for f of one sign whose large values are concentrated (a constant added to f changes no
    index); `defensive=1.0` leaves plain Monte Carlo.
    """
    if len(inputs.batch_shape) != 1 or inputs.event_shape:
        raise ValueError(
            f"inputs has batch shape {inputs.batch_shape} and event shape {inputs.event_shape}: "
            "give one scalar distribution with a batch of d, such as dist.Uniform(low, high)"
        )
    (d,) = inputs.batch_shape

    def functions(choices):
        a, b = (_quantiles(inputs, choices[name]) for name in ("x", "other"))
        eye = jnp.eye(d, dtype=bool)
        y = f(a)
        frozen = jax.vmap(f)(jnp.where(eye, a[None, :], b[None, :]))
        replaced = jax.vmap(f)(jnp.where(eye, b[None, :], a[None, :]))
        return jnp.concatenate([y * frozen, 0.5 * (y - replaced) ** 2, jnp.stack([y, y * y])])

    target = Target(bind(program(_inputs), jnp.zeros(d)))
    estimates = MultipleExpectations(functions, budget, **options).run(key, target)

    def indices(values):
        mean, square = values[-2], values[-1]
        variance = square - mean**2
        return (values[:d] - mean**2) / variance, values[d : 2 * d] / variance, mean, variance

    (first, total, mean, variance), errors = estimates.of(
        lambda v: indices(v * jnp.exp(estimates.log_scale))
    )
    return SobolIndices(first, total, errors[0], errors[1], mean, variance, estimates)


def _inputs(ctx, zeros):
    ctx.sample("x", dist.Normal(zeros, 1.0).to_event(1))
    ctx.sample("other", dist.Normal(zeros, 1.0).to_event(1))


@third_party
def _quantiles(inputs: dist.Distribution, z: Float[Array, "d"]) -> Float[Array, "d"]:
    # Not at 0 and 1, where an unbounded input would be infinite.
    tiny = jnp.finfo(z.dtype).eps / 4
    return inputs.icdf(jnp.clip(norm.cdf(z), tiny, 1 - 2 * tiny))
