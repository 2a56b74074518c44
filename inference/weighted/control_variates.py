"""Several expectations from one sample: adaptive importance sampling with control variates.

Demange-Chryst, Bachoc and Morio (2022), "Efficient estimation of multiple expectations with the
same sample by adaptive importance sampling and control variates" (arXiv 2212.00568), with its
stopping rule; batch sizes follow the authors' published experiments. Theirs find the shares by
sequential quadratic programming, this by the iteration of `minimize_variance`.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ...ppl.code import Code
from ...ppl.compiled import compiled
from ...ppl.partial import Choices
from ...ppl.target import Target, as_target
from .flat import Flat
from .gaussian import Gaussian, Normal
from .mixture import Mixture, minimize_variance

BATCHES = 10
"""The budget is spent in ten equal batches."""

MOST = 5
"""At most so many of them adapt, the first, from the model, included."""


class Expectations(eqx.Module):
    """Estimates of I_j, the integral of gamma f_j, and how they came about.

    - `values` [J]: *unbiased* (the final sample is independent of all that was adapted). For a
      normalized program without data they are E[f_j], else Z times the posterior expectations.
      Ratios and other functions of them, by `of`, are *consistent* only.
    - `covariance` [J, J] of the values, estimated; `errors` are their standard errors.
    - `log_scale`: values and covariance are in units of exp(log_scale), against underflow; 0 for a
      program without data, up to rounding.
    - `mixture` [J], `coefficients` [J]: shares alpha of the J densities and control coefficients
      beta of the final sample.
    - `adapted`: batches (tenths of the budget) spent on adapting; `draws`: those of the final
      sample.
    """

    values: Float[Array, "*batch J"]
    covariance: Float[Array, "*batch J J"]
    log_scale: Float[Array, "*batch"]
    mixture: Float[Array, "*batch J"]
    coefficients: Float[Array, "*batch J"]
    adapted: Int[Array, "*batch"]
    draws: Int[Array, "*batch"]

    @property
    def errors(self) -> Float[Array, "*batch J"]:
        """Standard errors of the values."""
        return jnp.sqrt(jnp.diagonal(self.covariance, axis1=-2, axis2=-1))

    def of(self, f: Callable[[Float[Array, "J"]], PyTree]) -> tuple[PyTree, PyTree]:
        """f(values) and standard errors by the delta method; for ratios, the scale cancels."""

        def error(jacobian):
            variance = jnp.einsum("...i,ij,...j->...", jacobian, self.covariance, jacobian)
            return jnp.sqrt(jnp.maximum(variance, jnp.zeros_like(variance)))

        return f(self.values), jax.tree.map(error, jax.jacobian(f)(self.values))


class MultipleExpectations(eqx.Module):
    """`MultipleExpectations(functions, budget).run(key, target)`: J expectations from one sample.

    `functions(choices) -> [J]`. The sampling density is a mixture g = sum_j alpha_j g_j with one
    Gaussian for each function, g_j close to |f_j| gamma; the estimate of I_j is the mean of
    (f_j gamma - beta_j g_j) / g + beta_j, where g_j / g has mean 1 and is the control variate. With
    g_j = f_j gamma / I_j and beta_j = I_j all J variances are zero.

    Adaptive: a first batch is from the model; each further one refits the g_j by cross-entropy to
    all draws so far (weighed by the mixture they are from), chooses the shares alpha to minimize
    the sum over j of `weights`_j times the variance, and beta_j by regression on the new batch. It
    stops when a batch cost more than it brought: old variance / (budget left before it) <= new
    variance / (budget left after it); at the latest at half the budget. What is left is one fresh
    sample, so that the values are unbiased.

    The free sites of the target must be continuous; values that the model excludes have weight
    zero. Gaussian tails can be too thin for f_j gamma; `defensive` > 0 is a share of draws from the
    model, which bounds the weights (Owen and Zhou 2000, section 2); 0 is the published method.

    `budget` counts evaluations of the functions. `run` is one compiled program and may be vmapped.
    """

    functions: Code
    budget: int = eqx.field(static=True)
    family: Gaussian
    weights: Float[Array, "J"] | None
    defensive: Float[Array, ""]

    def __init__(
        self,
        functions: Callable[[Choices], Float[Array, "J"]],
        budget: int,
        family: Gaussian | None = None,
        weights: Any = None,
        defensive: Any = 0.0,
    ):
        if budget < 10 * BATCHES:
            raise ValueError(f"budget={budget} draws are too few to adapt: give at least 100")
        self.functions = functions if isinstance(functions, Code) else Code(functions)
        self.budget, self.family = budget, Gaussian() if family is None else family
        self.weights = None if weights is None else jnp.asarray(weights, dtype=float)
        self.defensive = jnp.asarray(defensive, dtype=float)

    def run(self, key: PRNGKeyArray, target: Any) -> Expectations:
        """The estimates for a target, or a model that needs no args."""
        return _run(self, key, as_target(target))


@compiled
def _run(spec: MultipleExpectations, key: PRNGKeyArray, target: Target) -> Expectations:
    size = spec.budget // BATCHES
    flat = Flat(target, spec.functions)
    key_first, key_adapt, key_final = jax.random.split(key, 3)

    first = flat.evaluate(flat.from_model(key_first, size), jnp.zeros(()))
    top = jnp.max(first.log_gamma - first.log_model)
    scale = jnp.where(jnp.isfinite(top), top, jnp.zeros_like(top))
    first = eqx.tree_at(lambda d: d.log_gamma, first, first.log_gamma - scale)
    plain = first.f * jnp.exp(first.log_gamma - first.log_model)[:, None]
    (_, j), d = first.f.shape, first.x.shape[1]
    weights = jnp.ones(j) if spec.weights is None else spec.weights

    def adapt(carry):
        k, _, store, mixtures, beta, old = carry
        valid = jnp.repeat(jnp.arange(MOST, dtype=jnp.int32) < k, size)
        seen = jax.tree.map(lambda s: s.reshape(-1, *s.shape[2:]), store)
        log_h = _log_past(mixtures, seen, k)
        importance = jnp.where(valid, jnp.exp(seen.log_gamma - log_h), 0.0)
        parts = _fit(spec.family, seen, importance, valid)
        mixture = Mixture(parts, jnp.full((j,), 1 / j, weights.dtype), spec.defensive)
        ratios = jnp.where(valid[:, None], jnp.exp(mixture.log_parts(seen.x) - log_h[:, None]), 0.0)
        residuals = importance[:, None] * seen.f - beta[None, :] * ratios
        base = spec.defensive * jnp.where(valid, jnp.exp(seen.log_model - log_h), 0.0)
        alpha = minimize_variance(residuals**2 @ weights, ratios * (1 - spec.defensive), base)
        mixture = eqx.tree_at(lambda m: m.alpha, mixture, alpha)

        x = mixture.sample(jax.random.fold_in(key_adapt, k), flat, size)
        draws = flat.evaluate(x, scale)
        values, controls = mixture.terms(draws)
        beta = _regression(values, controls)
        new = jnp.var(values - beta[None, :] * controls, axis=0, ddof=1) @ weights
        left = (BATCHES - k).astype(new.dtype)
        stop = old / left <= new / (left - 1)
        store, mixtures = (
            jax.tree.map(lambda rows, row: rows.at[k].set(row), a, b)
            for a, b in ((store, draws), (mixtures, mixture))
        )
        return k + 1, stop, store, mixtures, beta, new

    one = Normal.of(jnp.zeros(d), jnp.eye(d))
    standard = jax.tree.map(lambda a: jnp.broadcast_to(a, (j, *a.shape)), one)
    unset = Mixture(standard, jnp.full((j,), 1 / j, weights.dtype), spec.defensive)
    start = (
        jnp.int32(1),
        jnp.zeros((), bool),
        jax.tree.map(lambda x: jnp.zeros((MOST, *x.shape), x.dtype).at[0].set(x), first),
        jax.tree.map(lambda x: jnp.broadcast_to(x, (MOST, *x.shape)), unset),
        jnp.mean(plain, axis=0),
        jnp.var(plain, axis=0, ddof=1) @ weights,
    )
    end = jax.lax.while_loop(lambda c: (c[0] < MOST) & ~c[1], adapt, start)
    k, beta = end[0], end[4]
    mixture = jax.tree.map(lambda rows: rows[k - 1], end[3])

    def final(i, sums):
        x = mixture.sample(jax.random.fold_in(key_final, i), flat, size)
        values, controls = mixture.terms(flat.evaluate(x, scale))
        terms = values - beta[None, :] * controls
        return sums[0] + jnp.sum(terms, axis=0), sums[1] + terms.T @ terms

    total, squares = jax.lax.fori_loop(k, BATCHES, final, (jnp.zeros(j), jnp.zeros((j, j))))
    draws = (BATCHES - k) * size
    n = draws.astype(total.dtype)
    covariance = (squares / n - jnp.outer(total, total) / n**2) / (n - 1)
    return Expectations(total / n + beta, covariance, scale, mixture.alpha, beta, k, draws)


def _log_past(mixtures: Mixture, seen: Any, k: Int[Array, ""]) -> Float[Array, "n"]:
    """Log density of the mixture over the first k batches; that of the first is the model."""

    def one(mixture):
        return mixture.log_density(mixture.log_parts(seen.x), seen.log_model)

    each = jax.vmap(one)(mixtures).at[0].set(seen.log_model)
    used = jnp.arange(MOST, dtype=jnp.int32) < k
    each = jnp.where(used[:, None], each, -jnp.inf)
    return jax.nn.logsumexp(each, axis=0) - jnp.log(k.astype(each.dtype))


def _fit(family: Gaussian, seen: Any, importance: Float[Array, "n"], valid: Array) -> Normal:
    """Part j fitted to |f_j| gamma; to gamma where no draw has a weight."""
    weights = importance[:, None] * jnp.abs(seen.f)
    # Draws that are not made yet have weight zero here too.
    plain = jnp.broadcast_to(valid[:, None], weights.shape).astype(weights.dtype)
    weights = jnp.where(jnp.sum(weights, axis=0, keepdims=True) > 0, weights, plain)
    return jax.vmap(family.fit, in_axes=(None, 1))(seen.x, weights)


def _regression(values: Float[Array, "n J"], controls: Float[Array, "n J"]) -> Float[Array, "J"]:
    """Coefficient of each value on its control; 0 for a constant control."""
    centred = controls - jnp.mean(controls, axis=0, keepdims=True)
    covariance = jnp.sum(centred * values, axis=0)
    variance = jnp.sum(centred**2, axis=0)
    constant = variance <= 1e-12 * controls.shape[0]
    return jnp.where(constant, 0.0, covariance / jnp.where(constant, 1.0, variance))
