"""Bounds on the log evidence from both sides.

Grosse, Ghahramani and Adams (2015), "Sandwiching the marginal likelihood using bidirectional Monte
Carlo", section 3; for particle filters Zhao, Brekelmans, Makhzani and Grosse (2024), "Probabilistic
inference in language models via twisted sequential Monte Carlo", section 5.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray

from ..ppl.code import Code
from ..ppl.compiled import compiled
from ..ppl.status import Status
from ..ppl.target import Target, as_target
from .smc import SMC


class BidirectionalResult(eqx.Module):
    """What lies around log Z, nats, with standard errors of the means over runs.

    - `lower`: mean of log Z-hat over runs, at most log Z in expectation; -inf if a run died.
    - `upper`: mean of log Z-hat over runs that retain a posterior draw, at least log Z in
      expectation if the draw is exact.
    - `exact`: were they? If not, `upper` is a heuristic: draws that all miss the same part of the
      posterior give an `upper` below log Z, and a small gap that means nothing.
    - `forward`, `reverse` [runs]: the single log Z-hats. `status`: the first failure of a run.
    """

    lower: Float[Array, ""]
    lower_error: Float[Array, ""]
    upper: Float[Array, ""]
    upper_error: Float[Array, ""]
    forward: Float[Array, "runs"]
    reverse: Float[Array, "runs"]
    status: Status
    exact: bool = eqx.field(static=True)

    @property
    def gap(self) -> Float[Array, ""]:
        """`upper` - `lower`: estimates the symmetrised KL divergence of run and conditional run.

        It bounds that of one returned particle and the posterior, if the draws were exact.
        """
        return self.upper - self.lower

    @property
    def gap_error(self) -> Float[Array, ""]:
        """Standard error of the gap, the runs being independent."""
        return jnp.hypot(self.lower_error, self.upper_error)

    def __repr__(self) -> str:
        if isinstance(self.lower, Tracer) or self.lower.ndim:
            return f"BidirectionalResult(lower={self.lower!r}, upper={self.upper!r})"
        low, high = float(self.lower), float(self.upper)
        word = "log Z" if self.exact else "(heuristic above, no exact posterior draw) log Z"
        return (
            f"{low:.4f} +- {float(self.lower_error):.4f} <= {word} <= "
            f"{high:.4f} +- {float(self.upper_error):.4f}, gap {high - low:.4f}"
        )


def bounds(
    key: PRNGKeyArray,
    smc: SMC,
    target: Any,
    exact_draw: Callable | None = None,
    *,
    runs: int = 64,
) -> BidirectionalResult:
    """E[log Z-hat] <= log Z <= E[log Z-hat of a run that retains an exact posterior draw].

    `exact_draw(key) -> choices` draws from the posterior: by enumeration, or the choices with which
    data were simulated (that is one exact draw, for the simulated data). Without it each
    conditional run retains a particle of a run of its own, and the upper side is a heuristic.
    """
    if runs < 2:
        raise ValueError(f"bounds needs at least two runs for standard errors, got {runs}")
    draw = None if exact_draw is None else Code(exact_draw)
    return _bounds(key, smc, as_target(target), draw, runs)


@compiled
def _bounds(key: PRNGKeyArray, smc: SMC, target: Target, draw: Code | None, runs: int):
    def one(key):
        key_forward, key_draw, key_reverse = jax.random.split(key, 3)
        particles = smc.run(key_forward, target)
        if draw is None:
            key_run, key_pick = jax.random.split(key_draw)
            other = smc.run(key_run, target)
            index = other.pick(key_pick)
            retained = jax.tree.map(lambda x: x[index], other.choices)
        else:
            retained = draw(key_draw)
        conditional = smc.run_conditional(key_reverse, target, retained)
        failed = particles.status
        other = conditional.status
        status = (failed.code, failed.step, failed.site), (other.code, other.step, other.site)
        return particles.log_evidence, conditional.log_evidence, status

    keys = jax.random.split(key, runs)
    sites = jax.eval_shape(lambda k: smc.run(k, target).status, key).sites
    forward, reverse, (first, second) = jax.lax.map(one, keys, batch_size=min(runs, 256))
    code, step, site = (jnp.concatenate(pair) for pair in zip(first, second, strict=True))
    worst = jnp.argmax(code != 0)
    status = Status(code[worst], step[worst], site[worst], sites)

    def summary(x):
        return jnp.mean(x), jnp.std(x, ddof=1) / jnp.sqrt(jnp.asarray(runs, x.dtype))

    return BidirectionalResult(
        *summary(forward), *summary(reverse), forward, reverse, status, draw is not None
    )
