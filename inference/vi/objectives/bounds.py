"""Lower bounds on the log evidence.

IWELBO: Burda, Grosse and Salakhutdinov (2016), "Importance weighted autoencoders". Renyi: Li and
Turner (2016), "Renyi divergence variational inference", equation 9.
"""

from typing import Any

from jaxtyping import Array, Float

from ...particles import log_mean_exp
from ..context import ObjectiveContext, frozen
from ..objective import Objective, objective


@objective
def elbo(ctx: ObjectiveContext, guide: Any, target: Any) -> Float[Array, ""]:
    """The evidence lower bound: E_q[log p(x, y) - log q(x)] = log Z - KL(q, posterior)."""
    x, log_q = ctx.draw("guide", guide)
    return ctx.log_density("target", target, x) - log_q


@objective
def path_elbo(ctx: ObjectiveContext, guide: Any, target: Any) -> Float[Array, ""]:
    """The ELBO, its gradient without the guide's own score, whose mean is zero.

    "Sticking the landing" (Roeder, Wu and Duvenaud 2017): where the guide is the posterior the
    gradient has no variance. With `vi.Enumerate()` at the only site it has none anywhere.
    """
    x, _ = ctx.draw("guide", guide)
    return ctx.log_density("target", target, x) - ctx.log_density("q", frozen(guide), x)


def iwelbo(n: int) -> Objective:
    """The importance-weighted bound: E log of the mean of n weights p(x, y) / q(x).

    It grows with n to log Z. Arguments (guide, target).
    """

    @objective
    def iwelbo(ctx, guide, target):
        return log_mean_exp(ctx.many("particles", n, elbo, guide, target))

    return iwelbo


def renyi(alpha: float, n: int) -> Objective:
    """The variational Renyi bound by n draws: E log mean w^(1 - alpha) / (1 - alpha).

    `alpha` 0 is the IWELBO, towards 1 the ELBO; a lower bound on log Z for alpha >= 0 and n = 1 or
    alpha <= 1; below 0, with many draws, an upper one. Minimizes the Renyi divergence of order
    alpha of guide and posterior as n grows. Arguments (guide, target).
    """
    if alpha == 1:
        raise ValueError("the Renyi bound of order 1 is the ELBO: use vi.elbo")

    @objective
    def renyi(ctx, guide, target):
        log_weights = ctx.many("particles", n, elbo, guide, target)
        return log_mean_exp((1 - alpha) * log_weights) / (1 - alpha)

    return renyi
