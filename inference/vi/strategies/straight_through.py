"""Biased gradients for discrete sites, told apart by their type.

Bengio, Leonard and Courville (2013), "Estimating or propagating gradients through stochastic
neurons"; Jang, Gu and Poole (2017) and Maddison, Mnih and Teh (2017), the Gumbel-softmax.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from .base import Strategy, plain, salted, type_name

_BERNOULLI = (dist.BernoulliProbs, dist.BernoulliLogits)
_ONE_HOT = (dist.MultinomialProbs, dist.MultinomialLogits)


class BiasedStrategy(Strategy):
    """The value is the discrete draw, its gradient that of something continuous near it."""

    biased: ClassVar[bool] = True

    def refusal(self, d):
        """See `Strategy.refusal`."""
        inner: Any = plain(d)
        if isinstance(inner, _BERNOULLI):
            return None
        if isinstance(inner, _ONE_HOT):
            one = isinstance(inner.total_count, int) and inner.total_count == 1
            return None if one else f"{type_name(d)} is one-hot only with total_count=1"
        more = ""
        if isinstance(inner, (dist.CategoricalProbs, dist.CategoricalLogits)):
            more = ", and an index has no gradient: draw it one-hot, Multinomial(1, probs)"
        return f"{type_name(d)} is not Bernoulli{more}"


def _with_gradient_of(hard: Array, soft: Array) -> Array:
    """`hard`, whose gradient is that of `soft`."""
    return hard.astype(soft.dtype) + (soft - jax.lax.stop_gradient(soft))


class StraightThrough(BiasedStrategy):
    """The gradient of the draw is taken to be that of its mean. Biased unless all is linear."""

    def value(self, key, d, value):
        """The draw as a real number."""
        return _with_gradient_of(value, jnp.broadcast_to(plain(d).probs, value.shape))


class GumbelStraightThrough(BiasedStrategy):
    """A draw by Gumbel-max, with the gradient of its softmax at a temperature.

    Biased at every temperature; the bias shrinks and the variance grows with the temperature.
    """

    temperature: float = eqx.field(static=True, default=1.0)

    def value(self, key: Any, d: Any, value: Array) -> Array:
        """A draw of the same law made from Gumbel noise, as real numbers."""
        inner: Any = plain(d)
        if isinstance(inner, _BERNOULLI):
            logits = jnp.broadcast_to(_logits(inner), value.shape)
            noisy = logits + jax.random.logistic(salted(key, 3), value.shape, logits.dtype)
            return _with_gradient_of(noisy > 0, jax.nn.sigmoid(noisy / self.temperature))
        logits = jnp.broadcast_to(_logits(inner), value.shape)
        noisy = logits + jax.random.gumbel(salted(key, 3), value.shape, logits.dtype)
        hard = jax.nn.one_hot(jnp.argmax(noisy, axis=-1), value.shape[-1], dtype=logits.dtype)
        return _with_gradient_of(hard, jax.nn.softmax(noisy / self.temperature, axis=-1))


def _logits(d: Any) -> Array:
    """Logits, of several values up to a constant."""
    if hasattr(d, "logits"):
        return d.logits
    odds = isinstance(d, dist.BernoulliProbs)
    return jax.scipy.special.logit(d.probs) if odds else jnp.log(d.probs)
