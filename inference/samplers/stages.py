"""Schedules of exponents from the prior (0) to the target (1).

Neal (2001), "Annealed importance sampling"; adaptive exponents by effective sample size: Jasra,
Stephens, Doucet and Tsagaris (2011); by conditional ESS: Zhou, Johansen and Aston (2016).
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

_HALVINGS = 40


def _number(x):
    return jnp.asarray(x, dtype=float)


def _optional(x):
    return None if x is None else _number(x)


class Stages(eqx.Module):
    """How the exponent of the likelihood rises from 0 to 1."""

    @property
    @abc.abstractmethod
    def count(self) -> int:
        """The number of stages, at most."""


class FixedStages(Stages):
    """Exponents that are known before the run: the evidence is then estimated without bias."""

    @abc.abstractmethod
    def exponents(self) -> Float[Array, " stages"]:
        """The exponent after each stage; the last is 1."""


class Linear(FixedStages):
    """Exponents s / stages."""

    stages: int = eqx.field(static=True)

    def __check_init__(self):
        _positive(self.stages)

    @property
    def count(self):
        """See `Stages.count`."""
        return self.stages

    def exponents(self):
        """See `FixedStages.exponents`."""
        return jnp.arange(1, self.stages + 1, dtype=float) / self.stages


class Power(FixedStages):
    """Exponents (s / stages)^power: with a power above 1 the steps are small at the prior."""

    stages: int = eqx.field(static=True)
    power: Float[Array, ""] = eqx.field(default=3.0, converter=_number)

    def __check_init__(self):
        _positive(self.stages)

    @property
    def count(self):
        """See `Stages.count`."""
        return self.stages

    def exponents(self):
        """See `FixedStages.exponents`."""
        fraction = jnp.arange(1, self.stages + 1, dtype=float) / self.stages
        return fraction ** self.power.astype(fraction.dtype)


class Geometric(FixedStages):
    """Exponents that grow by a constant factor, from `first` to 1."""

    stages: int = eqx.field(static=True)
    first: Float[Array, ""] = eqx.field(default=1e-3, converter=_number)

    def __check_init__(self):
        _positive(self.stages)

    @property
    def count(self):
        """See `Stages.count`."""
        return self.stages

    def exponents(self):
        """See `FixedStages.exponents`."""
        left = jnp.arange(self.stages - 1, -1, -1, dtype=float) / max(self.stages - 1, 1)
        return self.first.astype(left.dtype) ** left


class Exponents(FixedStages):
    """Exponents as given: above 0, not falling, ending at 1."""

    values: Float[Array, " stages"] = eqx.field(converter=_number)

    def __check_init__(self):
        values = self.values
        if isinstance(values, Tracer):
            return
        rising = np.asarray(values)
        if rising.ndim != 1 or not rising.size or rising[-1] != 1 or (rising <= 0).any():
            raise ValueError(
                f"exponents are above 0 and end at 1, the target; got {rising}: append 1 (a power "
                "of the whole target is target.tempered(power))"
            )
        if (np.diff(rising) < 0).any():
            raise ValueError(f"exponents do not fall from stage to stage; got {rising}: sort them")

    @property
    def count(self):
        """See `Stages.count`."""
        return self.values.shape[0]

    def exponents(self):
        """See `FixedStages.exponents`."""
        return self.values


class AdaptiveStages(Stages):
    """Each exponent where the effective sample size falls to a limit, by bisection.

    - `ess`: the fraction of its effective sample size that the population keeps in a stage
      (`Persistent`: of the number of particles of one stage). 0.5 by default.
    - `cess`: instead of it, the conditional ESS over N, which does not depend on whether the
      population was resampled.
    - `max_stages`: where they do not suffice the last stage goes to 1 in one step, so that the
      weights still are the target's, and the status is BUDGET.

    Law: the exponents depend on the particles, so that the evidence is consistent, not unbiased.
    """

    ess: Float[Array, ""] | None
    cess: Float[Array, ""] | None
    max_stages: int = eqx.field(static=True)

    def __init__(self, ess: Any = None, cess: Any = None, max_stages: int = 64):
        if ess is not None and cess is not None:
            raise ValueError("AdaptiveStages takes ess= or cess=, not both")
        _positive(max_stages)
        self.ess = _optional(0.5 if ess is None and cess is None else ess)
        self.cess = _optional(cess)
        self.max_stages = max_stages

    @property
    def count(self):
        """See `Stages.count`."""
        return self.max_stages


def limit(
    fits: Callable[[Float[Array, ""]], Bool[Array, ""]], start: Float[Array, ""]
) -> Float[Array, ""]:
    """Where an exponent in [start, 1] ceases to fit, by bisection, and just above; 1 if it fits.

    Above, so that a resampler of the same threshold resamples there.
    """
    one = jnp.ones_like(start)

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low) / 2
        good = fits(middle)
        return jnp.where(good, middle, low), jnp.where(good, high, middle)

    _, high = jax.lax.fori_loop(0, _HALVINGS, halve, (start, one))
    return jnp.where(fits(one), one, high)


def as_stages(x: Any) -> Stages:
    """A schedule as it is, an array as `Exponents`."""
    return x if isinstance(x, Stages) else Exponents(x)


def _positive(stages: int) -> None:
    if stages < 1:
        raise ValueError(f"a schedule needs at least one stage, got {stages}")
