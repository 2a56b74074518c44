"""Measure-valued gradients: differences of expectations under the parts of a density's derivative.

Mohamed, Rosca, Figurnov and Mnih (2020), "Monte Carlo gradient estimation in machine learning",
section 6 and table 1: the derivative of p(x; t) in t is c (p+(x) - p-(x)). Each pair is coupled.
"""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, PRNGKeyArray

from ....ppl import distributions
from ..baselines import Baseline
from .base import Report, Strategy, plain, salted, type_name
from .score import Default


class Pair(eqx.Module):
    """A parameter, its factor c, and draws of p+ and p-; all of the shape of the site's value."""

    parameter: Array
    factor: Array
    plus: Array
    minus: Array


def _normal(d: Any, key: PRNGKeyArray, shape: tuple[int, ...]) -> list[Pair]:
    loc, scale = (jnp.broadcast_to(x, shape) for x in (d.loc, d.scale))
    key_mean, key_maxwell, key_sign, key_share = jax.random.split(key, 4)
    rayleigh = jnp.sqrt(2 * jax.random.exponential(key_mean, shape, scale.dtype))
    normals = jax.random.normal(key_maxwell, (3, *shape), scale.dtype)
    sign = jax.random.rademacher(key_sign, shape).astype(scale.dtype)
    maxwell = sign * jnp.sqrt(jnp.sum(normals**2, axis=0))
    share = jax.random.uniform(key_share, shape, scale.dtype)
    return [
        Pair(
            loc,
            1 / (scale * math.sqrt(2 * math.pi)),
            loc + scale * rayleigh,
            loc - scale * rayleigh,
        ),
        Pair(scale, 1 / scale, loc + scale * maxwell, loc + scale * maxwell * share),
    ]


def _gamma(d: Any, key: PRNGKeyArray, shape: tuple[int, ...]) -> list[Pair]:
    rate = jnp.broadcast_to(d.rate, shape)
    shape_ = jnp.broadcast_to(getattr(d, "concentration", jnp.ones_like(rate)), shape)
    key_draw, key_more = jax.random.split(key)
    draw = jax.random.gamma(key_draw, shape_, dtype=rate.dtype)
    more = draw + jax.random.exponential(key_more, shape, rate.dtype)
    return [Pair(rate, shape_ / rate, draw / rate, more / rate)]


def _poisson(d: Any, key: PRNGKeyArray, shape: tuple[int, ...]) -> list[Pair]:
    rate = jnp.broadcast_to(d.rate, shape)
    draw = jax.random.poisson(key, rate, shape)
    return [Pair(rate, jnp.ones_like(rate), draw + 1, draw)]


_PAIRS: dict[type, Callable] = {
    dist.Normal: _normal,
    dist.Exponential: _gamma,
    dist.Gamma: _gamma,
    dist.Poisson: _poisson,
}
_FLIPS = (dist.BernoulliProbs, dist.BernoulliLogits)
_CATEGORIES = (dist.CategoricalProbs, dist.CategoricalLogits)


class MeasureValued(Strategy):
    """For each parameter the objective at p+ less the objective at p-, in the draw's place.

    For Normal (mean and scale), Exponential, Gamma (the rate; the concentration by its score, less
    the `baseline`), Poisson, Bernoulli and Categorical, and arrays of independent ones: the runs
    grow with the number of their parameters. Of a categorical site `Enumerate` costs as many.
    """

    baseline: Baseline | None = eqx.field(default_factory=Default)

    def refusal(self, d):
        """See `Strategy.refusal`."""
        if isinstance(plain(d), (*_PAIRS, *_FLIPS, *_CATEGORIES)):
            return None
        known = ", ".join(kind.__name__ for kind in (*_PAIRS, *_FLIPS, *_CATEGORIES))
        return f"no measure-valued derivative is known of {type_name(d)} (known: {known})"

    @distributions.third_party
    def report(self, key, d, value, log_prob):
        """See `Strategy.report`."""
        inner: Any = plain(d)
        value = jax.lax.stop_gradient(value)
        if isinstance(inner, _FLIPS):
            probs = jnp.broadcast_to(_parameter(inner, "probs"), value.shape)
            weights = jnp.where(value == 1, -probs, probs)  # of 1 - value
            return Report(values=_each(value, 1 - value), weights=weights.reshape(-1))
        if isinstance(inner, _CATEGORIES):
            logits = _parameter(inner, "logits")
            logits = jnp.broadcast_to(logits, (*value.shape, logits.shape[-1]))
            logits = jnp.where(jnp.isneginf(logits), 0.0, logits)
            probs = jnp.broadcast_to(
                jax.lax.stop_gradient(_parameter(inner, "probs")), logits.shape
            )
            n = logits.shape[-1]
            values = [_each(value, jnp.full_like(value, j)) for j in range(n)]
            return Report(
                values=jnp.concatenate(values),
                weights=jnp.moveaxis(probs * _one_at(logits), -1, 0).reshape(-1),
            )
        pairs = _PAIRS[type(inner)](inner, salted(key, 2), value.shape)
        pairs = [
            Pair(p.parameter, *jax.lax.stop_gradient((p.factor, p.plus, p.minus))) for p in pairs
        ]
        weights = [
            sign * (p.factor * _one_at(p.parameter)).reshape(-1) for p in pairs for sign in (1, -1)
        ]
        values = [_each(value, x) for p in pairs for x in (p.plus, p.minus)]
        score = None
        if isinstance(inner, dist.Gamma):
            fixed = dist.Gamma(inner.concentration, jax.lax.stop_gradient(inner.rate))
            score = jnp.sum(fixed.log_prob(value))
        return Report(score, jnp.concatenate(values), jnp.concatenate(weights))


def _parameter(d: Any, name: str) -> Array:
    return getattr(d, name)


def _one_at(parameter: Array) -> Array:
    """1 with the gradient of the parameter: a weight is zero only for what is impossible."""
    return 1 + parameter - jax.lax.stop_gradient(parameter)


def _each(value: Array, other: Array) -> Array:
    """The value with one entry at a time replaced, [entries, *shape]."""
    n = value.size
    own = jnp.eye(n, dtype=bool).reshape(n, *value.shape)
    return jnp.where(own, other.astype(value.dtype)[None], value[None])
