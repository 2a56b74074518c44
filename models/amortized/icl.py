"""In-context learning as Bayes: sequence predictors meta-trained on tasks, against the optimum.

A predictor trained on the log score over a family of tasks has the Bayes-optimal predictor as its
only minimum: Mikulik et al. (2020), "Meta-trained agents implement Bayes-optimal agents", section
2; Panwar, Ahuja and Goyal (2024), "In-context learning through the Bayesian prism", section 2. The
expected paired difference of log scores to the exact predictor is the expected KL divergence.
Memorizing against generalizing: Wurgaft et al. (2025), "In-context learning strategies emerge
rationally", section 3.
"""

import abc
import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from ...inference.diagnostics.pit import Paired, paired
from ...ppl.compiled import compiled
from ..network import Network
from .icl_tasks import Task


class Head(eqx.Module):
    """What a predictor's outputs mean: a law of the response."""

    width: eqx.AbstractVar[int]

    @abc.abstractmethod
    def log_prob(self, raw: Float[Array, "*t w"], y: Shaped[Array, "*t"]) -> Float[Array, "*t"]:
        """Log density or probability of responses, nats."""

    @abc.abstractmethod
    def mean(self, raw: Float[Array, "*t w"]) -> Float[Array, "*t"]:
        """Of the response."""


class Gaussian(Head):
    """Mean and log deviation, which is kept between exp(-5) and exp(5)."""

    width: int = eqx.field(static=True, default=2)

    def log_prob(self, raw: Float[Array, "*t w"], y: Shaped[Array, "*t"]) -> Float[Array, "*t"]:
        """See `Head`."""
        log_scale = 5 * jnp.tanh(raw[..., 1] / 5)
        z = (y - raw[..., 0]) * jnp.exp(-log_scale)
        return -0.5 * z**2 - log_scale - 0.5 * math.log(2 * math.pi)

    def mean(self, raw: Float[Array, "*t w"]) -> Float[Array, "*t"]:
        """See `Head`."""
        return raw[..., 0]


class Bernoulli(Head):
    """The logit of y = 1."""

    width: int = eqx.field(static=True, default=1)

    def log_prob(self, raw: Float[Array, "*t w"], y: Shaped[Array, "*t"]) -> Float[Array, "*t"]:
        """See `Head`."""
        return -jax.nn.softplus(jnp.where(y > 0, -raw[..., 0], raw[..., 0]))

    def mean(self, raw: Float[Array, "*t w"]) -> Float[Array, "*t"]:
        """See `Head`."""
        return jax.nn.sigmoid(raw[..., 0])


class InContext(eqx.Module):
    """A sequence network and a head as a predictor of y_t from x_t and the pairs before.

    The network's input at t is (x_t, x_{t-1}, y_{t-1}, is t the first), 2 d + 2 numbers: any causal
    module [..., t, inputs] -> [..., t, head.width], `StateSpaceNet` or `CausalTransformer` say.
    """

    net: Network
    head: Head

    def raw(self, x: Float[Array, "*b t d"], y: Shaped[Array, "*b t"]) -> Float[Array, "*b t w"]:
        """The network's outputs; output t does not depend on y_t."""
        return self.net(tokens(x, y))

    def log_prob(self, x: Float[Array, "*b t d"], y: Shaped[Array, "*b t"]) -> Float[Array, "*b t"]:
        """Log score of each response, nats."""
        return self.head.log_prob(self.raw(x, y), y)

    def mean(self, x: Float[Array, "*b t d"], y: Shaped[Array, "*b t"]) -> Float[Array, "*b t"]:
        """Predicted mean of each response."""
        return self.head.mean(self.raw(x, y))


def tokens(x: Float[Array, "*b t d"], y: Shaped[Array, "*b t"]) -> Float[Array, "*b t i"]:
    """The network's inputs; see `InContext`."""
    y = y.astype(x.dtype)
    first = jnp.zeros_like(y).at[..., 0].set(1.0)

    def late(z):
        return jnp.roll(z, 1, axis=-2).at[..., 0, :].set(0.0)

    return jnp.concatenate([x, late(x), late(y[..., None]), first[..., None]], axis=-1)


class Loss(eqx.Module):
    """Mean negative log score over fresh tasks, nats a response: the loss for `train`."""

    task: Task
    batch: int = eqx.field(static=True, default=64)

    def __call__(self, predictor: InContext, key: PRNGKeyArray) -> Float[Array, ""]:
        """On a batch of data sets."""
        x, y = jax.vmap(self.task.sample)(jax.random.split(key, self.batch))
        return -jnp.mean(predictor.log_prob(x, y))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A predictor beside the exact one on the same data sets, nats a response.

    - `excess`: paired difference of negative log scores, with its interval over data sets: an
      unbiased estimate of the expected KL divergence from the optimum, never negative in
      expectation.
    - `by_position` [t]: the same after t pairs; `exact` [t]: the optimum's negative log score.
    - `distance`: root mean square difference of the predicted means.
    """

    excess: Paired
    by_position: Float[np.ndarray, "t"]
    exact: Float[np.ndarray, "t"]
    distance: float


def compare(
    key: PRNGKeyArray, predictor: Any, task: Task, data_sets: int = 1000, judge: Task | None = None
) -> Comparison:
    """A predictor (`InContext`, or the exact one of another `Task`) against the exact one.

    Args:
        key: of the data sets; give one that training did not use.
        predictor: has `log_prob` and `mean` of (x, y).
        task: the family that data come from.
        data_sets: how many.
        judge: whose exact predictor to compare with; by default the family's own. With another, the
            excess may be negative: the judge is not optimal there.
    """
    keys = jax.random.split(key, data_sets)
    ours, exact, gap = map(np.asarray, _scores(predictor, task, judge or task, keys))
    return Comparison(
        paired(-ours, -exact),
        (exact - ours).mean(0),
        -exact.mean(0),
        float(np.sqrt((gap**2).mean())),
    )


@dataclasses.dataclass(frozen=True)
class Strategy:
    """How far a predictor is between two others.

    `share` is the weight on the first that makes the mixture of their predicted means nearest to
    the predictor's, with its standard error over data sets; `left` is the root mean square distance
    that remains.
    """

    share: float
    error: float
    left: float


def strategy(
    key: PRNGKeyArray,
    predictor: Any,
    memorizing: Task,
    generalizing: Task,
    task: Task,
    data_sets: int = 1000,
) -> Strategy:
    """Does a predictor memorize its training tasks (share 1) or generalize (0)?

    Least squares between the two Bayes-optimal predictors' means, on data sets of `task` (tasks
    never seen tell the two apart best).
    """
    keys = jax.random.split(key, data_sets)
    net, first, second = map(np.asarray, _means(predictor, memorizing, generalizing, task, keys))
    across = ((net - second) * (first - second)).sum(1)
    along = ((first - second) ** 2).sum(1)
    share = across.sum() / along.sum()
    error = np.sqrt(((across - share * along) ** 2).sum()) / along.sum()
    left = net - second - share * (first - second)
    return Strategy(float(share), float(error), float(np.sqrt((left**2).mean())))


@compiled
def _scores(predictor, task, judge, keys):
    x, y = jax.vmap(task.sample)(keys)
    ours, mean = jax.vmap(predictor.log_prob)(x, y), jax.vmap(predictor.mean)(x, y)
    return ours, jax.vmap(judge.log_prob)(x, y), mean - jax.vmap(judge.mean)(x, y)


@compiled
def _means(predictor, memorizing, generalizing, task, keys):
    x, y = jax.vmap(task.sample)(keys)
    both = jax.vmap(memorizing.mean)(x, y), jax.vmap(generalizing.mean)(x, y)
    return jax.vmap(predictor.mean)(x, y), *both
