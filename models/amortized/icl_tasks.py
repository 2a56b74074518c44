"""Sequences of tasks for in-context learning, each with its Bayes-optimal predictor.

Any prior of `models.amortized.priors` with an exact predictive is a family of tasks. A finite pool
of them, against which a predictor may memorize: Wurgaft, Lubana, Park, Tanaka, Reddy and Goodman
(2025), "In-context learning strategies emerge rationally"; Raventos, Paul, Chen and Ganguli (2023),
"Pretraining task diversity and the emergence of non-Bayesian in-context learning for regression".
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ...ppl.distributions import third_party
from ...ppl.program import Program, bind, program
from .priors.number import number


class Task(eqx.Module):
    """Data sets of a family as sequences: the law of y_t given x_t and the pairs before.

    `family` has `program(points)`, which samples sites "x" [points, d] and "y" [points], and
    `predictive(x, y, queries, mask)`, the exact law of y at queries: `priors.LinearRegression`
    (whose mean is ridge regression), `priors.Bandit`, `priors.GaussianProcess`, a `Pool`.
    """

    family: Any
    length: int = eqx.field(static=True)

    @property
    def program(self) -> Program:
        """The prior program of one data set."""
        return self.family.program(self.length)

    def sample(self, key: PRNGKeyArray) -> tuple[Float[Array, "t d"], Array]:
        """Inputs and responses of a new task."""
        choices = self.program.simulate(key).choices
        return jnp.asarray(choices["x"], float), choices["y"]

    def log_prob(self, x: Float[Array, "t d"], y: Array) -> Float[Array, "t"]:
        """Log p(y_t | x_1..t, y_1..t-1) for each t, nats: no predictor's is higher on average."""
        return self._each(x, y)[0]

    def mean(self, x: Float[Array, "t d"], y: Array) -> Float[Array, "t"]:
        """The exact predictor's mean of each response."""
        return self._each(x, y)[1]

    def _each(self, x, y):
        places = jnp.arange(x.shape[0])

        @third_party
        def one(t):
            law = self.family.predictive(x, y, x[t][None], places < t)
            categorical = isinstance(law, dist.CategoricalProbs)
            mean = jnp.asarray(law.probs)[..., 1] if categorical else jnp.asarray(law.mean)
            return jnp.asarray(law.log_prob(y[t][None]))[0], mean[0]

        return jax.vmap(one)(places)


class Pool(eqx.Module):
    """Linear regression with weights that are one of the rows of `pool`, equally likely.

    The exact predictor memorizes the pool. For new tasks, weights ~ N(0, 1), the generalizing one
    is better: that of `priors.LinearRegression` with the same noise.
    """

    pool: Float[Array, "k d"]
    noise: Float[Array, ""] = number(0.5)

    def program(self, points: int) -> Program:
        """Sites `task`, `x` [points, d] and `y` [points]."""
        return bind(program(_sample(points)), self)

    def predictive(
        self,
        x: Float[Array, "n d"],
        y: Float[Array, "n"],
        queries: Float[Array, "m d"],
        mask: Bool[Array, "n"] | None = None,
    ) -> dist.MixtureSameFamily:
        """The exact law of y at each query given the points where `mask` (all); noise included."""
        scores = -0.5 * ((y[:, None] - x @ self.pool.T) / self.noise) ** 2
        scores = scores - 0.5 * jnp.log(2 * math.pi * self.noise**2)
        if mask is not None:
            scores = jnp.where(mask[:, None], scores, 0.0)
        means = queries @ self.pool.T
        logits = jnp.broadcast_to(jnp.sum(scores, axis=0)[None], means.shape)
        return dist.MixtureSameFamily(
            dist.CategoricalLogits(logits), dist.Normal(means, self.noise)
        )


def pool(key: PRNGKeyArray, size: int, inputs: int, noise: float = 0.5) -> Pool:
    """A `Pool` of `size` tasks with weights from N(0, 1)."""
    return Pool(jax.random.normal(key, (size, inputs)), jnp.asarray(noise, dtype=float))


def _sample(points: int):
    def pooled(ctx, family: Pool):
        size, inputs = family.pool.shape
        task = ctx.sample("task", dist.CategoricalLogits(jnp.zeros(size)))
        x = ctx.sample("x", dist.Normal(jnp.zeros((points, inputs)), 1.0))
        return ctx.sample("y", dist.Normal(x @ family.pool[task], family.noise))

    return pooled
