"""A distribution on the reals as bars of given borders: the output of a network for regression.

Mueller, Hollmann, Pineda Arango, Grabocka and Hutter (2022), "Transformers can do Bayesian
inference", section 4 (the Riemann distribution): borders are from draws of the prior, and the two
outermost bars are half-normals that have half of their mass within the bar.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import log_ndtr, ndtr, ndtri
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray
from numpyro.distributions import constraints

HALF = 0.6744897501960817
"""Half of a half-normal's mass lies within so many scales."""


def borders_of(draws: ArrayLike, bars: int) -> Float[Array, "edges"]:
    """Borders of `bars` bars, fewer where draws repeat, from draws of the prior predictive.

    Half of them are quantiles, as in the paper. An answer much narrower than the prior loses about
    width^2 / (24 variance) nats to its bars, and the mean of that under the prior's density f is
    least where borders have density f^(1/3) (Panter and Dite 1951): this has the other half. With
    quantiles alone the few wide bars of the tails cost most of what is lost.

    ValueError for draws that are not finite or too few for two bars of some width.
    """
    values = np.asarray(draws, np.float64).ravel()
    if not np.isfinite(values).all():
        raise ValueError(f"{(~np.isfinite(values)).sum()} of the prior's draws are not finite")
    levels = np.linspace(0, 1, 4 * bars + 1)
    quantiles = np.quantile(values, levels) if len(values) else values
    if len(np.unique(quantiles)) < 3:
        raise ValueError(
            f"{len(values)} draws with {len(np.unique(values))} different values make no two bars: "
            "instead of bars use a head of classes for what takes a few values"
        )
    cube_root = np.cumsum(np.diff(quantiles, prepend=quantiles[0]) ** (2 / 3))
    share = (levels + cube_root / cube_root[-1]) / 2
    borders = np.interp(levels[::4], share, quantiles)
    return jnp.asarray(np.unique(np.asarray(jnp.asarray(borders, dtype=float))))


class Bars(dist.Distribution):
    """Density p_b / width_b within bar b; half-normals outside of the innermost two of B + 1.

    Args:
        borders: increasing, [B + 1], B >= 2; shared by the whole batch.
        logits: [..., B], normalized here; `log_probs` are the bars' log probabilities, nats.
        valid: whether the answer is one that the network was trained for; True if not given.
    """

    arg_constraints = {"logits": constraints.real_vector}
    support = constraints.real  # pyright: ignore
    reparametrized_params = []
    pytree_data_fields = ("borders", "log_probs", "valid")

    def __init__(
        self,
        borders: Float[Array, "edges"],
        logits: Float[Array, "*batch B"],
        valid: ArrayLike | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        """ValueError for shapes that do not fit."""
        if logits.shape[-1] + 1 != borders.shape[-1] or logits.shape[-1] < 2:
            raise ValueError(
                f"{borders.shape[-1]} borders need logits [..., {borders.shape[-1] - 1}] and at "
                f"least two bars, got {logits.shape}"
            )
        self.borders = borders
        self.log_probs = jax.nn.log_softmax(logits)
        self.valid = jnp.broadcast_to(
            jnp.asarray(True if valid is None else valid), logits.shape[:-1]
        )
        super().__init__(batch_shape=logits.shape[:-1], validate_args=validate_args)

    @property
    def logits(self) -> Float[Array, "*batch B"]:
        """Log probabilities of the bars, nats."""
        return self.log_probs

    @property
    def probs(self) -> Float[Array, "*batch B"]:
        """Probabilities of the bars."""
        return jnp.exp(self.log_probs)

    def log_prob(self, value: ArrayLike) -> Float[Array, "..."]:
        """Log density, nats."""
        value = jnp.asarray(value, dtype=float)
        shape = jnp.broadcast_shapes(value.shape, self.batch_shape)
        value = jnp.broadcast_to(value, shape)
        bar = self._bar(value)
        log_probs = jnp.broadcast_to(self.log_probs, (*shape, self.log_probs.shape[-1]))
        log_p = jnp.take_along_axis(log_probs, bar[..., None], axis=-1)[..., 0]
        return log_p + self.log_density_in(value, bar)

    def log_density_in(self, value: Float[Array, "..."], bar: Array) -> Float[Array, "..."]:
        """Log density, nats, at a value of its bar's own law."""
        left, right = self._tails()
        outer = jnp.where(bar == 0, left, right)
        inner = jnp.where(bar == 0, self.borders[1], self.borders[-2])
        z = (value - inner) / outer
        half_normal = -0.5 * z**2 - jnp.log(outer) + 0.5 * jnp.log(2 / jnp.pi)
        uniform = -jnp.log(jnp.diff(self.borders))[bar]
        return jnp.where(self._is_tail(bar), half_normal, uniform)

    def cdf(self, value: ArrayLike) -> Float[Array, "..."]:
        """P(Y <= value)."""
        value = jnp.asarray(value, dtype=float)
        shape = jnp.broadcast_shapes(value.shape, self.batch_shape)
        value = jnp.broadcast_to(value, shape)
        bar = self._bar(value)
        probs = jnp.broadcast_to(self.probs, (*shape, self.log_probs.shape[-1]))
        below = jnp.cumsum(probs, axis=-1) - probs
        p, below = (jnp.take_along_axis(x, bar[..., None], axis=-1)[..., 0] for x in (probs, below))
        left, right = self._tails()
        low, width = self.borders[bar], jnp.diff(self.borders)[bar]
        within = jnp.where(
            bar == 0,
            2 * ndtr(jnp.minimum(value - self.borders[1], 0.0) / left),
            jnp.where(
                bar == self._last,
                2 * ndtr(jnp.maximum(value - self.borders[-2], 0.0) / right) - 1,
                (value - low) / width,
            ),
        )
        return below + p * within

    def icdf(self, q: ArrayLike) -> Float[Array, "..."]:
        """The value below which there is mass q; -inf and inf at 0 and 1."""
        q = jnp.asarray(q, dtype=float)
        shape = jnp.broadcast_shapes(q.shape, self.batch_shape)
        q = jnp.broadcast_to(q, shape)
        probs = jnp.broadcast_to(self.probs, (*shape, self.log_probs.shape[-1]))
        above = jnp.cumsum(probs, axis=-1)
        bar = jnp.sum(above[..., :-1] <= q[..., None], axis=-1)
        p, above = (jnp.take_along_axis(x, bar[..., None], axis=-1)[..., 0] for x in (probs, above))
        share = jnp.clip((q - above + p) / p, 0.0, 1.0)
        left, right = self._tails()
        inside = self.borders[bar] + share * jnp.diff(self.borders)[bar]
        low = self.borders[1] + left * ndtri(jnp.clip(q / p, 0.0, 1.0) / 2)
        # What is above, not what is below, so that the right tail is as exact as the left one.
        rest = jnp.where(bar == self._last, jnp.clip((1 - q) / p, 0.0, 1.0), 0.5)
        high = self.borders[-2] - right * ndtri(rest / 2)
        return jnp.where(bar == 0, low, jnp.where(bar == self._last, high, inside))

    quantile = icdf

    def sample(self, key: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Independent draws, [*sample_shape, *batch]."""
        shape = (*sample_shape, *self.batch_shape)
        smallest = jnp.finfo(self.log_probs.dtype).tiny
        return self.icdf(jax.random.uniform(key, shape, self.log_probs.dtype, smallest))

    @property
    def mean(self) -> Float[Array, "*batch"]:
        """The mean."""
        return self.probs @ self._moments()[0]

    @property
    def variance(self) -> Float[Array, "*batch"]:
        """The variance."""
        centres, variances = self._moments()
        row = centres.reshape((1,) * len(self.batch_shape) + (-1,))
        around = (row - self.mean[..., None]) ** 2
        return jnp.sum(self.probs * around, axis=-1) + self.probs @ variances

    def entropy(self) -> Float[Array, "*batch"]:
        """Differential entropy, nats."""
        inner = jnp.log(jnp.diff(self.borders))
        tails = jnp.log(jnp.stack(self._tails())) + 0.5 * jnp.log(jnp.pi * jnp.e / 2)
        own = inner.at[0].set(tails[0]).at[-1].set(tails[1])
        return self.probs @ own - jnp.sum(jax.scipy.special.xlogy(self.probs, self.probs), axis=-1)

    @property
    def _last(self) -> int:
        return self.log_probs.shape[-1] - 1

    def _bar(self, value):
        return jnp.searchsorted(self.borders[1:-1], value)

    def _is_tail(self, bar):
        return (bar == 0) | (bar == self._last)

    def _tails(self):
        """Scales of the two half-normals."""
        widths = jnp.diff(self.borders)
        return widths[0] / HALF, widths[-1] / HALF

    def _moments(self):
        """Mean and variance of each bar's own law."""
        widths = jnp.diff(self.borders)
        left, right = self._tails()
        reach = jnp.sqrt(2 / jnp.pi)
        centres = (self.borders[:-1] + self.borders[1:]) / 2
        centres = centres.at[0].set(self.borders[1] - left * reach)
        centres = centres.at[-1].set(self.borders[-2] + right * reach)
        variances = (widths**2 / 12).at[0].set(left**2 * (1 - 2 / jnp.pi))
        return centres, variances.at[-1].set(right**2 * (1 - 2 / jnp.pi))


def log_masses(
    loc: Float[Array, "*batch"], scale: Float[Array, "*batch"], borders: Float[Array, "edges"]
) -> Float[Array, "*batch B"]:
    """Log probabilities that normal laws give to the bars: the best any network could answer.

    The negative log score of `Bars(borders, log_masses(...))` minus that of the law is what bars
    cost, the floor of a network's gap.
    """
    loc, scale = loc[..., None], scale[..., None]
    inner = borders[1:-1].reshape((1,) * (loc.ndim - 1) + (-1,))
    edges = (inner - loc) / scale
    ends = jnp.full_like(loc, jnp.inf)
    low = jnp.concatenate([-ends, edges], axis=-1)
    high = jnp.concatenate([edges, ends], axis=-1)
    # In the nearer tail, where the difference is not lost to numbers that are almost one.
    flip = low + high > 0
    near, far = jnp.where(flip, -low, high), jnp.where(flip, -high, low)
    near, far = log_ndtr(near), log_ndtr(far)
    return near + jnp.log1p(-jnp.exp(jnp.minimum(far - near, -jnp.finfo(near.dtype).eps)))
