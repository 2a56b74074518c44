"""What a predictor does not know, told by predicting pairs of responses to one input.

Johnson, Tarlow, Duvenaud and Maddison (2024), "Experts don't cheat: learning what you don't know by
predicting pairs", section 3. Two responses to one input are independent given the truth p(y | x). A
predictor of pairs for which the second depends on the first ("cheats") says by how much it is
unsure of the truth: if it is calibrated at second order,

    Cov[p(y1 | x), p(y2 | x)] = q(y1, y2 | x) - q(y1 | x) q(y2 | x)

over all inputs that it treats alike. That holds for a predictor that underfits, too. Simulators
give pairs for nothing, and a sequence predictor predicts them when an input is given twice.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Shaped

from .icl import Bernoulli


class Epistemic(eqx.Module):
    """The predicted law, and the covariance of the truth about it.

    - `probabilities` [..., k]: q(y).
    - `covariance` [..., k, k]: of the true probabilities given what the predictor knows; its
      diagonal is not negative if the predictor is calibrated at second order.
    """

    probabilities: Float[Array, "*b k"]
    covariance: Float[Array, "*b k k"]

    @property
    def deviation(self) -> Float[Array, "*b k"]:
        """Standard deviation of each true probability about the predicted one."""
        variance = jnp.diagonal(self.covariance, axis1=-2, axis2=-1)
        return jnp.sqrt(jnp.maximum(variance, 0))

    def radius(self, level: ArrayLike = 0.05) -> Float[Array, "*b k"]:
        """The true probability is nearer than this with probability 1 - level, by Chebyshev.

        Law: for a predictor calibrated at second order, over draws of inputs and truths.
        """
        return self.deviation / jnp.sqrt(jnp.asarray(level, dtype=float))


def epistemic(first: Float[Array, "*b k"], second: Float[Array, "*b k k"]) -> Epistemic:
    """From q(y1) and q(y2 | y1), row y1: made symmetric, as exchangeable responses are."""
    joint = first[..., :, None] * second
    joint = (joint + jnp.swapaxes(joint, -1, -2)) / 2
    alone = jnp.sum(joint, axis=-1)
    return Epistemic(alone, joint - alone[..., :, None] * alone[..., None, :])


def in_context(
    predictor: Any, x: Float[Array, "t d"], y: Shaped[Array, "t"], query: Float[Array, "d"]
) -> Epistemic:
    """Of a binary response at a query after t pairs: the query is given twice.

    The predictor is an `InContext` trained on sequences of at least t + 2, or whatever has its
    `head` and `mean`.
    """
    if not isinstance(predictor.head, Bernoulli):
        raise TypeError("needs a predictor of binary responses, with the head Bernoulli()")
    xs = jnp.concatenate([x, query[None], query[None]])

    def chances(response):
        ys = jnp.concatenate([y, jnp.stack([response, 0 * response])])
        return predictor.mean(xs, ys)[-2:]

    one, two = jax.vmap(chances)(jnp.arange(2).astype(y.dtype)).T
    first = jnp.stack([1 - one[0], one[0]])
    return epistemic(first, jnp.stack([1 - two, two], axis=-1))


def cheating(alone: Float[ArrayLike, "n"], given: Float[ArrayLike, "n"]) -> tuple[float, float]:
    """How much the other response helps: mean log q(y2 | x, y1) - log q(y2 | x), its error, nats.

    0 where the predictor knows all there is to know; of a Bayes-optimal predictor it is the mutual
    information of two responses, by which more data would help.
    """
    gain = np.asarray(given, np.float64) - np.asarray(alone, np.float64)
    return float(gain.mean()), float(gain.std(ddof=1) / np.sqrt(len(gain)))


def unsure(answer: Epistemic, level: ArrayLike) -> Any:
    """Is some true probability known no better than to `level`? Then ask exact inference."""
    return jnp.max(answer.deviation, axis=-1) > jnp.asarray(level, dtype=float)
