"""Distributions whose density is only estimated, but without bias."""

import abc

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray, PyTree


class EstimatedDistribution(eqx.Module):
    """A distribution p for `ctx.sample` whose density is estimated (Lew et al. 2023, section 4).

    Sites of it hold a tree as value; the estimate is stored in the trace.
    """

    @abc.abstractmethod
    def random_weighted(self, key: PRNGKeyArray) -> tuple[PyTree, Float[Array, ""]]:
        """A draw x ~ p and log w with E[1/w | x] = 1/p(x)."""

    @abc.abstractmethod
    def estimate_logpdf(self, key: PRNGKeyArray, value: PyTree) -> Float[Array, ""]:
        """Log w with E[w] = p(value)."""
