"""The densities an algorithm reports when it is nested (Lew et al. 2023, section 4)."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from ..enumeration import enumerate
from ..errors import ProgramError
from ..partial import Choices
from ..target import Target, as_target
from .functions import RARE
from .result import LawResult, decide, standardized
from .statistics import batches, moments

LIMIT = 256

ADVICE = (
    "random_weighted needs E[1/w | x] = 1/q(x) and estimate_logpdf E[w] = q(x), q being the law "
    "of random_weighted's draws. Look whether estimate_logpdf runs with the value retained "
    "(conditional SMC with a conditional resampler), and whether both use gamma(x) / Z-hat with "
    "the same Z-hat."
)


class _Draw(eqx.Module):
    """1 at the value that was drawn, 1/w there, and the square of that."""

    algorithm: Any
    target: Target
    values: Choices

    def __call__(self, key):
        choices, log_w = self.algorithm.random_weighted(key, self.target)
        hit = _same(choices, self.values).astype(log_w.dtype)
        inverse = jnp.where(hit > 0, hit * jnp.exp(-log_w), jnp.zeros_like(hit))
        return jnp.concatenate([hit, inverse, jnp.sum(inverse, keepdims=True)])


class _Estimate(eqx.Module):
    """w of one estimate for each value."""

    algorithm: Any
    target: Target
    values: Choices

    def __call__(self, key):
        n = len(jax.tree.leaves(self.values)[0])

        def one(key, value):
            return jnp.exp(self.algorithm.estimate_logpdf(key, self.target, value))

        w = jax.vmap(one)(jax.random.split(key, n), self.values)
        return jnp.concatenate([w, jnp.sum(w, keepdims=True)])


def _same(choices: Any, table: Any) -> Array:
    """Which rows of a table of choices [M, ...] are `choices`."""
    if isinstance(choices, dict):
        rows = [_same(node, table[name]) for name, node in choices.items()]
        return jnp.all(jnp.stack(rows), axis=0)
    same = table == jnp.asarray(choices)[None]
    return jnp.all(same.reshape(same.shape[0], -1), axis=1)


def nested_density(
    key: PRNGKeyArray, algorithm: Any, target: Any, *, runs: int = 2**15
) -> LawResult:
    """Check `random_weighted` and `estimate_logpdf` against each other at every possible choice.

    With q(v) the law of random_weighted's draws: for every v, E[1{x = v} / w] = 1; E[estimate(v)]
    is the frequency of v; the product E[1/w | x = v] E[estimate(v)] is 1 (sharper: the frequencies
    cancel); summed over all v, E[1/w] is their number and E[estimate(v)] sums to the probability
    that a draw is possible. For targets of at most 256 possible choices. Choices too rare to be
    drawn 50 times are reported untested.
    """
    target = as_target(target)
    posterior = enumerate(target)
    m = len(posterior.log_probs)
    if not 0 < m <= LIMIT:
        raise ProgramError(
            f"nested_density needs a target of 1 to {LIMIT} possible choices, not {m}"
        )
    draw = _Draw(algorithm, target, posterior.choices)
    estimate = _Estimate(algorithm, target, posterior.choices)
    names = [_name(jax.tree.map(lambda x, i=i: x[i], posterior.choices)) for i in range(m)]

    def measure(key, runs):
        mean, error, n = moments(batches(draw, jax.random.fold_in(key, 0), runs))
        w, w_error, _ = moments(batches(estimate, jax.random.fold_in(key, 1), -(-runs // m)))
        q, inverse = mean[:m], mean[m:-1]
        seen = q * n >= RARE
        with np.errstate(divide="ignore", invalid="ignore"):
            # Given x = v the mean of 1/w is inverse / q; `second` is the mean of its square.
            second = error[m:-1] ** 2 * (n - 1) + inverse**2
            given = inverse / q
            given_error = np.sqrt(np.maximum(second / q - given**2, 0) / (n * q))
            product_error = np.hypot(given * w_error[:m], given_error * w[:m])
        tests = {
            "E[1/w; x = {}] = 1": standardized(inverse - 1, error[m:-1]),
            "E[estimate({})] = frequency": standardized(
                w[:m] - q, np.hypot(w_error[:m], error[:m]), q
            ),
            "E[1/w | {0}] E[estimate({0})] = 1": standardized(given * w[:m] - 1, product_error),
        }
        z = {
            law.format(names[v]): float(scores[v])
            for law, scores in tests.items()
            for v in np.flatnonzero(seen)
        }
        if seen.all():
            z["sum of E[1/w]"] = float(standardized(mean[-1] - m, error[-1], m))
        rest = q.sum()
        rest_error = np.sqrt(max(rest * (1 - rest), 0) / n)
        z["sum of E[estimate]"] = float(
            standardized(w[-1] - rest, np.hypot(w_error[-1], rest_error))
        )
        return z, [names[v] for v in np.flatnonzero(~seen)]

    return decide("nested density", measure, key, runs, ADVICE)


def _name(choices: Any) -> str:
    if isinstance(choices, dict):
        return ",".join(f"{name}={_name(node)}" for name, node in choices.items())
    return str(np.asarray(choices).tolist()).replace(" ", "")
