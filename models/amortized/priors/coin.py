"""Coins and bandits of unknown biases, with their exact predictives.

Beta-Bernoulli conjugacy; Gelman et al. (2013), "Bayesian data analysis", section 2.1.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float, Int

from ....ppl.context import Context
from ....ppl.program import Program, bind, program
from .number import number


class Bandit(eqx.Module):
    """Arms that pay 1 or nothing; each pays with its own probability, from Beta(alpha, beta).

    x [points, arms] says by a 1 which arm was pulled, drawn uniformly; y is 0 or 1.
    """

    arms: int = eqx.field(static=True)
    alpha: Float[Array, ""] = number(1.0)
    beta: Float[Array, ""] = number(1.0)

    def program(self, points: int) -> Program:
        """Sites `bias` [arms], `arm` [points], `x` [points, arms] (of `arm`) and `y` [points]."""
        return bind(program(_sample(points)), self)

    def predictive(
        self,
        x: Float[Array, "n arms"],
        y: Int[Array, "n"],
        queries: Float[Array, "m arms"],
        mask: Bool[Array, "n"] | None = None,
    ) -> dist.CategoricalProbs:
        """The exact law of y at each query given the points where `mask` (all)."""
        pulled = x if mask is None else jnp.where(mask[:, None], x, 0.0)
        won = y.astype(pulled.dtype) @ pulled
        bias = (self.alpha + won) / (self.alpha + self.beta + pulled.sum(0))
        p = queries @ bias
        return dist.CategoricalProbs(jnp.stack([1 - p, p], axis=-1))


def coin(alpha: float = 1.0, beta: float = 1.0) -> Bandit:
    """A coin: one arm, x is 1 everywhere, y is 1 for heads."""
    return Bandit(1, jnp.asarray(alpha, dtype=float), jnp.asarray(beta, dtype=float))


def _sample(points: int) -> Callable:
    def bandit(ctx: Context, family: Bandit):
        law = dist.Beta(family.alpha, family.beta).expand((family.arms,))
        bias = ctx.sample("bias", law)
        even = jnp.zeros((points, family.arms))
        arm = ctx.sample("arm", dist.CategoricalLogits(even))
        pulled = jax.nn.one_hot(arm, family.arms, dtype=bias.dtype)
        x = ctx.sample("x", dist.Delta(pulled, event_dim=2))
        return ctx.sample("y", dist.BernoulliProbs(x @ bias))

    return bandit
