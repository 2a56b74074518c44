"""Levels that change at unknown times, with the exact predictive at any time.

Product partitions: Barry and Hartigan (1992), "Product partition models for change point
problems"; sums over all partitions by recursions over segments as in Fearnhead (2006), "Exact and
efficient Bayesian inference for multiple changepoint problems", equations 1-3.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float

from ....ppl.context import Context
from ....ppl.program import Program, bind, program
from .number import number


class Changepoints(eqx.Module):
    """A level on [0, 1] that jumps at the times of a Poisson process, seen with normal noise.

    - `rate`: expected number of jumps; `scale`: standard deviation of each level, of mean 0;
      `noise`: that of the noise. x are uniform times, in random order.
    """

    rate: Float[Array, ""] = number(3.0)
    scale: Float[Array, ""] = number(1.0)
    noise: Float[Array, ""] = number(0.3)

    def program(self, points: int) -> Program:
        """Sites `x` [points, 1], `jump`, `level` [points] in order of time, and `y` [points].

        `jump` [points - 1] says whether there was one since the time before; `level` [i] counts
        only where there was.
        """
        return bind(program(_sample(points)), self)

    def predictive(
        self,
        x: Float[Array, "n 1"],
        y: Float[Array, "n"],
        queries: Float[Array, "m 1"],
        mask: Bool[Array, "n"] | None = None,
    ) -> dist.MixtureSameFamily:
        """The exact law of y at each query given the points where `mask` (all); noise included.

        A mixture over the segments between jumps in which a query may lie; cost (n + m)^2.
        """
        seen = jnp.ones(len(x), bool) if mask is None else mask
        times = jnp.concatenate([x[:, 0], queries[:, 0]])
        seen = jnp.concatenate([seen, jnp.zeros(len(queries), bool)])
        values = jnp.concatenate([y, jnp.zeros(len(queries), y.dtype)])
        order = jnp.argsort(times)
        log_p, mean, variance = self._segments(times[order], values[order], seen[order])
        place = jnp.argsort(order)[len(x) :]
        n = len(times)
        first, last = jnp.arange(n)[None, :, None], jnp.arange(n)[None, None]
        inside = (first <= place[:, None, None]) & (place[:, None, None] <= last)
        lowest = jnp.finfo(log_p.dtype).min  # CategoricalLogits takes no -inf
        logits = jnp.maximum(jnp.where(inside, log_p[None], lowest), lowest).reshape(
            len(queries), -1
        )
        means = jnp.broadcast_to(mean.reshape(1, -1), logits.shape)
        scales = jnp.sqrt(jnp.broadcast_to(variance.reshape(1, -1), logits.shape))
        return dist.MixtureSameFamily(dist.CategoricalLogits(logits), dist.Normal(means, scales))

    def _segments(self, times, values, seen):
        """Log probability of each segment i..j, up to one constant; y's mean and variance in it."""
        n = len(times)
        gaps = jnp.diff(times) * self.rate
        jump = jnp.log(-jnp.expm1(-jnp.maximum(gaps, 1e-30)))
        jump = jnp.concatenate([jnp.zeros(1), jump, jnp.zeros(1)])
        first, last = jnp.arange(n)[:, None], jnp.arange(n)[None]

        def sums(v):
            total = jnp.concatenate([jnp.zeros(1), jnp.cumsum(jnp.where(seen, v, 0.0))])
            return jnp.where(first <= last, total[1:][None] - total[:-1][:, None], 0.0)

        count, total, square = sums(jnp.ones(n)), sums(values), sums(values**2)
        precision = 1 / self.scale**2 + count / self.noise**2
        mean = total / self.noise**2 / precision
        evidence = (
            -0.5 * count * jnp.log(2 * jnp.pi * self.noise**2)
            - 0.5 * jnp.log(self.scale**2 * precision)
            - 0.5 * (square / self.noise**2 - mean**2 * precision)
        )
        within = jnp.concatenate([jnp.zeros(1), jnp.cumsum(-gaps)])
        evidence = evidence + within[None] - within[:, None]
        evidence = jnp.where(first <= last, evidence, -jnp.inf)

        def forward(before, j):
            """`before` [n + 1]: log probability of what precedes a segment that begins at i."""
            ended = jax.nn.logsumexp(before[:-1] + evidence[:, j]) + jump[j + 1]
            return before.at[j + 1].set(ended), None

        def backward(after, i):
            """`after` [n + 1]: log probability of what follows a segment that ends at j - 1."""
            begun = jax.nn.logsumexp(evidence[i] + after[1:]) + jump[i]
            return after.at[i].set(begun), None

        nothing = jnp.full(n + 1, -jnp.inf)
        before, _ = jax.lax.scan(forward, nothing.at[0].set(0.0), jnp.arange(n))
        after, _ = jax.lax.scan(backward, nothing.at[n].set(0.0), jnp.arange(n)[::-1])
        log_p = before[:-1][:, None] + evidence + after[1:][None]
        return log_p, mean, 1 / precision + self.noise**2


def _sample(points: int) -> Callable:
    def changepoints(ctx: Context, family: Changepoints):
        x = ctx.sample("x", dist.Uniform(jnp.zeros((points, 1)), 1.0))
        order = jnp.argsort(x[:, 0])
        gaps = jnp.diff(x[order, 0])
        jump = ctx.sample("jump", dist.BernoulliProbs(-jnp.expm1(-family.rate * gaps)))
        level = ctx.sample("level", dist.Normal(jnp.zeros(points), family.scale))
        starts = jnp.concatenate([jnp.zeros(1, int), jnp.where(jump > 0, jnp.arange(1, points), 0)])
        segment = jax.lax.cummax(starts)
        mean = level[segment][jnp.argsort(order)]
        return ctx.sample("y", dist.Normal(mean, family.noise))

    return changepoints
