"""Objectives under the posterior, estimated by self-normalized importance sampling from the guide.

Bornschein and Bengio (2015), "Reweighted wake-sleep": the draws and their weights are taken as
given. The gradients are unbiased for these objectives, which tend to those under the posterior.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..context import ObjectiveContext
from ..objective import Objective, objective


def _weighted(ctx: ObjectiveContext, n: int, guide: Any, target: Any) -> tuple[Any, Array]:
    """Draws [n] of the guide and their normalized weights, both as given."""

    def particle(ctx):
        x, log_q = ctx.draw("guide", guide, frozen=True)
        return x, ctx.log_density("target", target, x) - log_q

    xs, log_weights = ctx.many("particles", n, particle)
    return jax.lax.stop_gradient((xs, jax.nn.softmax(log_weights)))


def _mean(ctx: ObjectiveContext, name: str, law: Any, xs: Any, weights: Array) -> Array:
    """The mean of log densities [n] under the weights."""
    densities = ctx.each(name, lambda ctx, x: ctx.log_density("density", law, x), xs)
    return jnp.sum(weights * jnp.where(weights == 0, jnp.zeros_like(densities), densities))


def p_wake(n: int) -> Objective:
    """Wake phase of the model: E log p(x, y) under n weighted draws. Arguments (target, guide)."""

    @objective
    def p_wake(ctx, target, guide):
        xs, weights = _weighted(ctx, n, guide, target)
        return _mean(ctx, "p", target, xs, weights)

    return p_wake


def q_wake(n: int) -> Objective:
    """Wake phase of the guide: E log q(x) under n weighted draws, -KL(posterior, q) and a constant.

    Arguments (guide, target).
    """

    @objective
    def q_wake(ctx, guide, target):
        xs, weights = _weighted(ctx, n, guide, target)
        return _mean(ctx, "q", guide, xs, weights)

    return q_wake


def symmetric(n: int) -> Objective:
    """-KL(q, posterior) - KL(posterior, q): the ELBO, and log q - log p under n weighted draws.

    The evidence cancels. Arguments (guide, target).
    """

    @objective
    def symmetric(ctx, guide, target):
        x, log_q = ctx.draw("guide", guide)
        reverse = ctx.log_density("target", target, x) - log_q
        xs, weights = _weighted(ctx, n, guide, target)
        forward = _mean(ctx, "q", guide, xs, weights) - _mean(ctx, "p", target, xs, weights)
        return reverse + forward

    return symmetric


@objective
def forward_kl(ctx: ObjectiveContext, guide: Any, posterior: Any) -> Float[Array, ""]:
    """-KL(p, q) for a law p that can be drawn from: E_p[log q(x) - log p(x)].

    `posterior`: a generative function, a distribution, or `ppl.normalize(target, algorithm)`; then
    log p is its estimate and the gradient is that of E log q(x) under the algorithm's draws.
    """
    x, log_p = ctx.draw("posterior", posterior, frozen=True)
    return ctx.log_density("guide", guide, x) - log_p
