"""From what a network knows at a query to a law of y: bars for numbers, classes for labels."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from flax import nnx
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from .bars import Bars, borders_of
from .layers import linear

Start = tuple[Float[Array, "*batch features"], Float[Array, "*batch features"]]
"""Locations and log scales of what `AbstractHead.embed` makes of a y: where an answer starts."""


class Classes(dist.CategoricalLogits):
    """A law on the classes 0..K-1; `valid` says whether the network was trained for the question.

    Args:
        logits: [..., K].
        valid: True if not given.
    """

    pytree_data_fields = ("valid",)

    def __init__(
        self,
        logits: Float[Array, "*batch K"],
        valid: ArrayLike | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.valid = jnp.broadcast_to(
            jnp.asarray(True if valid is None else valid), logits.shape[:-1]
        )
        super().__init__(logits, validate_args=validate_args)


class AbstractHead(eqx.Module):
    """How y enters the network and how its law leaves it; `fitted` to draws of the prior."""

    @abc.abstractmethod
    def fitted(self, y: Array) -> "AbstractHead":
        """The head with the numbers that it takes from the prior's `y` [data sets, points]."""

    @property
    @abc.abstractmethod
    def features(self) -> int:
        """How many numbers `embed` makes of a y."""

    @abc.abstractmethod
    def embed(self, y: Array) -> Float[Array, "*batch features"]:
        """What the network reads of y [*batch]."""

    @abc.abstractmethod
    def module(self, width: int, rngs: nnx.Rngs) -> nnx.Module:
        """The network's last layer."""

    @abc.abstractmethod
    def law(
        self,
        out: Float[Array, "*batch K"],
        valid: Bool[Array, "*batch"],
        start: Start | None = None,
    ) -> Bars | Classes:
        """The law that the last layer's output stands for, near that of `start` where it is 0."""

    @property
    @abc.abstractmethod
    def range(self) -> tuple[Any, Any]:
        """The lowest and the highest y that `inside` takes."""

    def inside(self, y: Array) -> Bool[Array, "*batch"]:
        """Whether y is such as the prior draws."""
        low, high = self.range
        return (y >= low) & (y <= high)


class Riemann(AbstractHead):
    """Bars between borders from draws of the prior; for y that is a number.

    The logits are a linear map, to which those of a Student law are added, whose location, scale
    and degrees of freedom are the network's, so that a smooth answer need not be learned bar by
    bar. `student=False` is the linear map alone, as in Mueller et al. (2022).
    """

    bars: int = eqx.field(static=True)
    student: bool = eqx.field(static=True)
    borders: Float[Array, "edges"] | None
    loc: Float[Array, ""] | None
    scale: Float[Array, ""] | None

    def __init__(
        self,
        bars: int = 1000,
        *,
        student: bool = True,
        borders: Float[Array, "edges"] | None = None,
        loc: Float[Array, ""] | None = None,
        scale: Float[Array, ""] | None = None,
    ) -> None:
        self.bars, self.student = bars, student
        self.borders, self.loc, self.scale = borders, loc, scale

    def fitted(self, y: Float[Array, "sets points"]) -> "Riemann":
        """See `AbstractHead.fitted`; the borders take all draws."""
        borders = borders_of(y, self.bars)
        low, high = np.quantile(np.asarray(y, np.float64), [0.1, 0.9])
        # A normal law's standard deviation, from what heavy tails leave as it is.
        scale = (high - low) / 2.5631 or float(np.std(np.asarray(y, np.float64)))
        return Riemann(
            len(borders) - 1,
            student=self.student,
            borders=borders,
            loc=jnp.asarray((low + high) / 2, dtype=float),
            scale=jnp.asarray(scale, dtype=float),
        )

    @property
    def features(self) -> int:
        """See `AbstractHead.features`."""
        return 2

    def embed(self, y: Float[Array, "*batch"]) -> Float[Array, "*batch 2"]:
        """The standardized y, and the same squashed."""
        _, loc, scale = self._numbers
        z = (y - loc) / scale
        return jnp.stack([z, jnp.arcsinh(z)], axis=-1)

    def module(self, width: int, rngs: nnx.Rngs) -> nnx.Module:
        """See `AbstractHead.module`."""
        zeros = nnx.initializers.zeros_init()
        last = linear(width, self.bars + 3 * self.student, kernel_init=zeros, rngs=rngs)
        if self.student:
            start = jnp.log(jnp.diff(self._numbers[0]))
            assert last.bias is not None
            last.bias[...] = jnp.concatenate([start - jnp.mean(start), jnp.array([0.0, 0.0, 3.0])])
        return last

    def law(
        self,
        out: Float[Array, "*batch K"],
        valid: Bool[Array, "*batch"],
        start: Start | None = None,
    ) -> Bars:
        """See `AbstractHead.law`."""
        borders, loc, scale = self._numbers
        if not self.student:
            return Bars(borders, out, valid)
        logits, mean, log_scale, log_freedom = jnp.split(out, self.bars + np.arange(3), axis=-1)
        if start is not None:
            mean, log_scale = mean + start[0][..., :1], log_scale + start[1][..., :1]
        centres = ((borders[:-1] + borders[1:]) / 2 - loc) / scale
        centres = centres.reshape((1,) * (out.ndim - 1) + (-1,))
        z2 = ((centres - mean) * jnp.exp(-log_scale)) ** 2
        freedom = 1 + jnp.exp(jnp.minimum(log_freedom, 12.0))
        return Bars(borders, logits - 0.5 * (freedom + 1) * jnp.log1p(z2 / freedom), valid)

    @property
    def range(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """That of all draws of the prior, wider by a tenth on both sides."""
        borders = self._numbers[0]
        low, high = borders[0], borders[-1]
        return low - 0.1 * (high - low), high + 0.1 * (high - low)

    @property
    def _numbers(self) -> tuple[Array, Array, Array]:
        if self.borders is None or self.loc is None or self.scale is None:
            raise ValueError("a head takes its borders from a prior: head.fitted(y), as PFN does")
        return self.borders, self.loc, self.scale


class Labels(AbstractHead):
    """A softmax over `classes`; for y in 0..classes-1."""

    classes: int = eqx.field(static=True)

    def fitted(self, y: Int[Array, "sets points"]) -> "Labels":
        """Itself; ValueError for labels of the prior that it does not have."""
        if y.min() < 0 or y.max() >= self.classes:
            raise ValueError(
                f"the prior draws labels {int(y.min())}..{int(y.max())}, but there are "
                f"{self.classes} classes: 0..{self.classes - 1}"
            )
        return self

    @property
    def features(self) -> int:
        """See `AbstractHead.features`."""
        return self.classes

    def embed(self, y: Int[Array, "*batch"]) -> Float[Array, "*batch classes"]:
        """One number a class."""
        return jax.nn.one_hot(y, self.classes, dtype=float)

    def module(self, width: int, rngs: nnx.Rngs) -> nnx.Module:
        """See `AbstractHead.module`."""
        zeros = nnx.initializers.zeros_init()
        return linear(width, self.classes, kernel_init=zeros, rngs=rngs)

    def law(
        self,
        out: Float[Array, "*batch K"],
        valid: Bool[Array, "*batch"],
        start: Start | None = None,
    ) -> Classes:
        """See `AbstractHead.law`; `start` is not used: it made networks for tables worse."""
        return Classes(out, valid)

    @property
    def range(self) -> tuple[int, int]:
        """The first and the last class."""
        return 0, self.classes - 1
