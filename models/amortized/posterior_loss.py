"""What a Distribution Transformer is trained on: the expected score of posterior and prior.

Whittle et al. (2025), section 3: E[-log q(x | z, phi)] is E[KL(posterior || q)] plus a constant. Of
each problem only one latent x is drawn by the program. Ours: it is joined by draws of q itself, the
weights of which are those of conditional importance sampling with x retained (Andrieu, Doucet and
Holenstein 2010, section 4.2). What that picks has the posterior's law if x has: the gradient stays
unbiased, and where q is near the posterior its variance falls as one over the number of draws.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .meta_prior import MetaPrior, Problem
from .mixtures import Mixture


class PosteriorLoss(eqx.Module):
    """Mean negative log score of posterior and prior over `batch` fresh problems, nats.

    Unbiased, for every number of `draws` of the network's own posterior by which the program's
    one is joined; with 0 densities of the program are not needed. `prior_weight` is that of the
    prior's score: it makes `Belief.prior` a copy of the prior.
    """

    task: MetaPrior
    prior_weight: Float[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, dtype=float))
    batch: int = eqx.field(static=True)
    draws: int = eqx.field(static=True)

    def __init__(self, task: MetaPrior, batch: int = 256, draws: int = 16, prior_weight: Any = 1.0):
        self.task, self.batch, self.draws = task, batch, draws
        self.prior_weight = jnp.asarray(prior_weight, dtype=float)

    def __call__(self, net: Any, key: PRNGKeyArray) -> Float[Array, ""]:
        """The loss of a network on the problems of this key."""

        def one(key):
            key_problem, key_draws = jax.random.split(key)
            problem = self.task.draw(key_problem)
            answer = net(problem.prior, problem.data, problem.observed)
            score = retained_score(key_draws, self.task, problem, answer.posterior, self.draws)
            prior = -answer.prior.log_prob(problem.position)
            return score + self.prior_weight.astype(prior.dtype) * prior

        return jnp.mean(jax.vmap(one)(jax.random.split(key, self.batch)))


def retained_score(
    key: PRNGKeyArray, task: MetaPrior, problem: Problem, q: Mixture, draws: int
) -> Float[Array, ""]:
    """-log q averaged over the problem's latent and draws of q, weighed; unbiased for E[-log q]."""
    if draws == 0:
        return -q.log_prob(problem.position)
    fixed = jax.lax.stop_gradient(q)
    others = fixed.sample(key, (draws,)).astype(problem.position.dtype)
    points = jax.lax.stop_gradient(jnp.concatenate([problem.position[None], others]))
    scores = jax.vmap(q.log_prob)(points)
    log_w = jax.vmap(lambda u: task.log_joint(problem, u))(points) - scores
    log_w = jnp.where(jnp.isnan(log_w), -jnp.inf, log_w)
    return -jnp.sum(jax.lax.stop_gradient(jax.nn.softmax(log_w)) * scores)
