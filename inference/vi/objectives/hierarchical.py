"""Guides with auxiliary variables: what the guide draws and the target lacks is integrated out.

HVI: Ranganath, Tran and Blei (2016), "Hierarchical variational models". IWHVI: Sobolev and Vetrov
(2019), "Importance weighted hierarchical variational inference", and DIWHVI, equation 8 there.
The auxiliary variables' proposal is their law in the guide; with a learned one, give its
`ppl.marginal(guide, selection, inference.Importance(m, proposal))` to `elbo` or `iwelbo`.
"""

from typing import Any

from ....ppl.nested import Marginal, marginal
from ....ppl.selection import select
from ....ppl.target import as_target
from ...importance import Importance
from ..objective import Objective, objective
from ..sites import free_sites
from .bounds import elbo, iwelbo


def _integrated(guide: Any, target: Any, m: int) -> Marginal:
    """The guide's marginal on the target's free sites."""
    names = (tuple(path.split("/")) for path in sorted(free_sites(as_target(target))))
    return marginal(guide, select(*names), Importance(m))


def hvi() -> Objective:
    """Hierarchical VI: the ELBO of guide and target joined on the auxiliary variables."""
    return iwhvi(1)


def iwhvi(m: int) -> Objective:
    """The ELBO with log q(x) from m draws of the auxiliary variables, the true ones among them.

    It grows with m to the ELBO of the marginal guide. Arguments (guide, target).
    """

    @objective
    def iwhvi(ctx, guide, target):
        return elbo(ctx, _integrated(guide, target, m), target)

    return iwhvi


def diwhvi(n: int, m: int) -> Objective:
    """The IWELBO of n draws, each with log q(x) from m. Arguments (guide, target)."""

    @objective
    def diwhvi(ctx, guide, target):
        return iwelbo(n)(ctx, _integrated(guide, target, m), target)

    return diwhvi
