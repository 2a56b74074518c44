"""A mixture of Gaussians as sampling density, and the shares that minimize a variance."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .flat import Draws, Flat
from .gaussian import Normal

ROUNDS = 200


class Mixture(eqx.Module):
    """The density `defensive` times the model's, plus the rest of sum_j alpha_j g_j."""

    parts: Normal
    alpha: Float[Array, "*batch J"]
    defensive: Float[Array, "*batch"]

    def log_parts(self, x: Float[Array, "n d"]) -> Float[Array, "n J"]:
        """Log density of every part at every x."""
        one = jax.vmap(lambda part, x: part.log_density(x), in_axes=(0, None))
        return jax.vmap(one, in_axes=(None, 0))(self.parts, x)

    def log_density(
        self, log_parts: Float[Array, "n J"], log_model: Float[Array, "n"]
    ) -> Float[Array, "n"]:
        """Log density, given those of the parts and of the model."""
        shares = jnp.log(self.alpha * (1 - self.defensive))
        terms = [log_parts + shares[None, :], (log_model + jnp.log(self.defensive))[:, None]]
        return jax.nn.logsumexp(jnp.concatenate(terms, axis=1), axis=1)

    def sample(self, key: PRNGKeyArray, flat: Flat, n: int) -> Float[Array, "n d"]:
        """Independent draws."""
        key_model, key_x, key_part, key_plain = jax.random.split(key, 4)
        index = jax.random.categorical(key_part, jnp.log(self.alpha), shape=(n,))
        chosen = jax.tree.map(lambda p: p[index], self.parts)
        x = jax.vmap(lambda part, k: part.sample(k))(chosen, jax.random.split(key_x, n))
        plain = jax.random.uniform(key_plain, (n,), x.dtype) < self.defensive
        return jnp.where(plain[:, None], flat.from_model(key_model, n), x)

    def terms(self, draws: Draws) -> tuple[Float[Array, "n J"], Float[Array, "n J"]]:
        """Per draw f_j gamma / g, and the control g_j / g, of mean 1 under g."""
        log_parts = self.log_parts(draws.x)
        log_g = self.log_density(log_parts, draws.log_model)
        controls = jnp.exp(log_parts - log_g[:, None])
        return draws.f * jnp.exp(draws.log_gamma - log_g)[:, None], controls


def minimize_variance(
    cost: Float[Array, "n"], ratios: Float[Array, "n J"], base: Float[Array, "n"]
) -> Float[Array, "J"]:
    """The shares alpha on the simplex that minimize sum_i cost_i / (base_i + sum_j alpha_j r_ij).

    The objective is convex. By Jensen's inequality 1 / (b + sum_j alpha_j r_j) lies below a bound
    that touches it at the current shares and is separable; its minimum multiplies each share by the
    root of minus the derivative. Every round lowers the objective; no step size, no constraint.
    """
    n, j = ratios.shape
    top = jnp.max(cost)
    cost = cost / jnp.where(top > 0, top, jnp.ones_like(top))

    def round_(_, alpha):
        density = base + ratios @ alpha
        safe = jnp.where(density > 0, density, jnp.ones_like(density))
        # Where all parts underflow there is nothing to learn.
        slope = ratios.T @ jnp.where(density > 0, cost / safe**2, jnp.zeros_like(cost))
        new = alpha * jnp.sqrt(slope)
        whole = jnp.sum(new)
        usable = jnp.isfinite(whole) & (whole > 0)
        return jnp.where(usable, new / jnp.where(usable, whole, jnp.ones_like(whole)), alpha)

    return jax.lax.fori_loop(0, ROUNDS, round_, jnp.full((j,), 1 / j, ratios.dtype))
