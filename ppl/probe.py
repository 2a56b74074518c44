"""What a run can be asked to say about its sites: their supports, or what a gradient needs."""

import abc
from typing import ClassVar

import equinox as eqx
import numpyro.distributions as dist
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from . import distributions
from .estimated import EstimatedDistribution


class Probe(eqx.Module):
    """Sees every site of a run, by way of its `Request`; the reports are `Outcome.reports`.

    A report is a tree of arrays for one instance of a site; `vmap`, `scan` and time stack the
    reports of the instances. In a branch that is not taken reports mean nothing: look at `active`.
    """

    everywhere: ClassVar[bool] = False
    """Are reports of branches that are not taken wanted as well? They are then always run."""

    def value(
        self, path: tuple[str, ...], key: PRNGKeyArray | None, d: dist.Distribution, value: Array
    ) -> Array:
        """What the program goes on with in place of the value; by default the value."""
        return value

    @abc.abstractmethod
    def report(
        self,
        path: tuple[str, ...],
        key: PRNGKeyArray | None,
        d: dist.Distribution,
        value: Array,
        log_prob: Float[Array, ""],
    ) -> PyTree:
        """The report on one instance of a site."""

    def estimated(self, path: tuple[str, ...], d: EstimatedDistribution) -> None:
        """Called at a site whose density is estimated; such sites have no report."""


class FiniteSupport(Probe):
    """Reports all values a site may take, [K, *event], or None if they are not finitely many."""

    everywhere: ClassVar[bool] = True

    def report(self, path, key, d, value, log_prob):
        """See `Probe.report`."""
        return distributions.finite_support(d)


FINITE_SUPPORT = FiniteSupport()
