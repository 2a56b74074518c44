"""Mixtures of Gaussians with full covariances: density, draws, moments, exact Bayes, bijections.

Products with a linear-Gaussian likelihood: Alspach and Sorenson (1972), "Nonlinear Bayesian
estimation using Gaussian sum approximations", component by component, in the array (QR) form of
Kaminski, Bryson and Schmidt (1971), which never forms a covariance.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray
from numpyro.distributions.transforms import Transform

from ...inference.vi.guides.laws import Law
from ...ppl.distributions import third_party


class Mixture(eqx.Module):
    """sum_i softmax(logits)_i N(means_i, factors_i factors_i'), a density on R^d; a pytree.

    `factors` are lower triangular with a positive diagonal. Methods are of one mixture: for a batch
    of them (leading axes in all three arrays) use `jax.vmap`.
    """

    logits: Float[Array, "*batch k"]
    means: Float[Array, "*batch k d"]
    factors: Float[Array, "*batch k d d"]

    @property
    def log_weights(self) -> Float[Array, " k"]:
        """Normalised, nats."""
        return jax.nn.log_softmax(self.logits)

    @property
    def components(self) -> int:
        """Number of components, k."""
        return self.means.shape[-2]

    @property
    def size(self) -> int:
        """Number of coordinates, d."""
        return self.means.shape[-1]

    @property
    def loc(self) -> Float[Array, " d"]:
        """The mean."""
        return jnp.exp(self.log_weights) @ self.means

    @property
    def cov(self) -> Float[Array, "d d"]:
        """The covariance."""
        weights, centred = jnp.exp(self.log_weights), self.means - self.loc[None]
        within = jnp.einsum("k,kij,klj->il", weights, self.factors, self.factors)
        return within + jnp.einsum("k,ki,kj->ij", weights, centred, centred)

    def log_prob(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """Log density at a point, nats."""
        return jax.nn.logsumexp(self.log_weights + self._each(x))

    def sample(self, key: PRNGKeyArray, shape: tuple[int, ...] = ()) -> Float[Array, "... d"]:
        """Independent draws."""
        key_which, key_normal = jax.random.split(key)
        which = jax.random.categorical(key_which, self.logits, shape=shape)
        noise = jax.random.normal(key_normal, (*shape, self.size), self.means.dtype)
        return self.means[which] + jnp.einsum("...ij,...j->...i", self.factors[which], noise)

    def permuted(self, order: Int[Array, " n"]) -> "Mixture":
        """The components in another order, or some of them (renormalised)."""
        return Mixture(self.logits[order], self.means[order], self.factors[order])

    def defended(self, share: ArrayLike = 0.1, scale: ArrayLike = 2.0) -> "Mixture":
        """With weight `share`, the same components `scale` times as wide: heavier tails.

        As an importance proposal it loses at most a fraction `share` of the effective sample size
        (Hesterberg 1995, "Weighted average importance sampling and defensive mixture
        distributions"), and the weights stay small where the tails are too light.
        """
        share = jnp.asarray(share, self.logits.dtype)
        log_weights = [self.log_weights + jnp.log1p(-share), self.log_weights + jnp.log(share)]
        wider = self.factors * jnp.asarray(scale, self.factors.dtype)
        return Mixture(
            jnp.concatenate(log_weights),
            jnp.concatenate([self.means, self.means]),
            jnp.concatenate([self.factors, wider]),
        )

    def update(
        self,
        z: Float[Array, " m"],
        matrix: Float[Array, "m d"],
        noise: Float[Array, "m m"],
        shift: ArrayLike = 0.0,
    ) -> tuple["Mixture", Float[Array, ""]]:
        """The posterior given z = matrix x + shift + N(0, noise), exact, and log p(z), nats."""
        root = jnp.linalg.cholesky(noise)

        def one(mean, factor):
            m = z.shape[0]
            top = jnp.concatenate([root.T, jnp.zeros((m, self.size), root.dtype)], axis=1)
            bottom = jnp.concatenate([factor.T @ matrix.T, factor.T], axis=1)
            upper = jnp.linalg.qr(jnp.concatenate([top, bottom]), mode="r")
            white = jax.scipy.linalg.solve_triangular(
                upper[:m, :m], z - matrix @ mean - shift, trans=1, lower=False
            )
            log_det = jnp.sum(jnp.log(jnp.abs(jnp.diagonal(upper[:m, :m]))))
            log_z = -0.5 * jnp.sum(white**2) - log_det - 0.5 * m * math.log(2 * math.pi)
            return mean + upper[:m, m:].T @ white, _lower(upper[m:, m:]), log_z

        means, factors, log_z = jax.vmap(one)(self.means, self.factors)
        joint = self.log_weights + log_z
        return Mixture(joint, means, factors), jax.nn.logsumexp(joint)

    def moved(
        self,
        matrix: Float[Array, "n d"],
        noise: Float[Array, "n n"],
        shift: ArrayLike = 0.0,
    ) -> "Mixture":
        """The law of matrix x + shift + N(0, noise), exact."""
        root = jnp.linalg.cholesky(noise)

        def one(mean, factor):
            stacked = jnp.concatenate([(matrix @ factor).T, root.T])
            return matrix @ mean + shift, _lower(jnp.linalg.qr(stacked, mode="r"))

        return Mixture(self.logits, *jax.vmap(one)(self.means, self.factors))

    def first(self, n: int) -> "Mixture":
        """The law of the first n coordinates."""
        return Mixture(self.logits, self.means[:, :n], self.factors[:, :n, :n])

    def given(self, known: Float[Array, " n"]) -> "Mixture":
        """The law of the other coordinates given the first n."""
        n = known.shape[0]
        start = self.first(n)
        white = jax.vmap(_whiten)(start.factors, known[None] - start.means)
        return Mixture(
            self.log_weights + start._each(known),
            self.means[:, n:] + jnp.einsum("kij,kj->ki", self.factors[:, n:, :n], white),
            self.factors[:, n:, n:],
        )

    def through(self, transform: Transform) -> "Pushed":
        """The law of transform(x)."""
        return Pushed(self, transform)

    @property
    def distribution(self) -> dist.Distribution:
        """As NumPyro's distribution, event [d]: at a site of a program, say."""
        return third_party(_distribution)(self.logits, self.means, self.factors)

    def _each(self, x: Float[Array, " d"]) -> Float[Array, " k"]:
        """Log density of each component."""
        white = jax.vmap(_whiten)(self.factors, x[None] - self.means)
        log_det = jnp.sum(jnp.log(jnp.diagonal(self.factors, axis1=-2, axis2=-1)), axis=-1)
        return -0.5 * jnp.sum(white**2, axis=-1) - log_det - 0.5 * self.size * math.log(2 * math.pi)


class MixtureLaw(Law):
    """A mixture as a law for guides: drawn in parts, each given what came before."""

    loc: Float[Array, " d"]
    mixture: Mixture

    def conditional(self, known, start, size):
        """See `Law`."""
        rest = self.mixture.given(known) if start else self.mixture
        return rest.first(size).distribution

    def after(self, known, start, z):
        """See `Law`."""
        return jnp.concatenate([known, z])

    def joint(self):
        """See `Law`."""
        return self.mixture.distribution


class Pushed(eqx.Module):
    """The law of transform(x), x from a mixture: change of variables for bounded parameters.

    `transform` is NumPyro's, between vectors (`biject_to(constraints.independent(positive, 1))`),
    or of coordinates one by one, or from one coordinate to a number. As a `Law` it is that of x.
    """

    mixture: Mixture
    transform: Any

    def log_prob(self, y: Float[Array, "..."]) -> Float[Array, ""]:
        """Log density at a value, with respect to the value, nats."""

        @third_party
        def back(y):
            x = self.transform.inv(y)
            return x, self.transform.log_abs_det_jacobian(x, y)

        x, log_volume = back(y)
        return self.mixture.log_prob(jnp.ravel(x)) - jnp.sum(log_volume)

    def sample(self, key: PRNGKeyArray, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Independent draws."""
        return third_party(self.transform)(self.mixture.sample(key, shape))


def gaussian(mean: Float[Array, " d"], cov: Float[Array, "d d"]) -> Mixture:
    """A mixture of one component."""
    return Mixture(jnp.zeros((1,), mean.dtype), mean[None], jnp.linalg.cholesky(cov)[None])


def _distribution(logits, means, factors):
    parts = dist.MultivariateNormal(means, scale_tril=factors)
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), parts)


def _lower(upper: Float[Array, "n d"]) -> Float[Array, "d d"]:
    """The transpose of a triangular factor, its diagonal made positive."""
    diagonal = jnp.diagonal(upper)
    return (upper * jnp.where(diagonal < 0, -1.0, 1.0).astype(upper.dtype)[:, None]).T


def _whiten(factor: Float[Array, "d d"], x: Float[Array, " d"]) -> Float[Array, " d"]:
    """The solution y of factor y = x, written out: many small solves are slow."""
    rows: list[Any] = []
    for i in range(x.shape[0]):
        rest = sum((factor[i, j] * y for j, y in enumerate(rows)), jnp.zeros((), x.dtype))
        rows.append((x[i] - rest) / factor[i, i])
    return jnp.stack(rows)
