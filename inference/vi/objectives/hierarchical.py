"""Guides with auxiliary variables: what the guide draws and the target lacks is integrated out.

HVI: Ranganath, Tran and Blei (2016), "Hierarchical variational models". IWHVI: Sobolev and Vetrov
(2019), "Importance weighted hierarchical variational inference", and DIWHVI, equation 8 there.
The auxiliary variables' proposal is their law in the guide; with a learned one, give its
`ppl.marginal(guide, selection, inference.Importance(m, proposal))` to `elbo` or `iwelbo`.
"""

from typing import Any

from jaxtyping import Array, Float

from ....ppl.nested import Marginal, marginal
from ....ppl.selection import select
from ....ppl.target import as_target
from ...importance import Importance
from ..context import ObjectiveContext
from ..mismatch import free_sites
from ..objective import Objective, objective
from .bounds import elbo, iwelbo


def _integrated(guide: Any, target: Any, m: int) -> Marginal:
    """The guide's marginal on the target's free sites."""
    names = (tuple(path.split("/")) for path in sorted(free_sites(as_target(target))))
    return marginal(guide, select(*names), Importance(m))


@objective
def hvi(ctx: ObjectiveContext, guide: Any, target: Any) -> Float[Array, ""]:
    """Hierarchical VI: the ELBO with q(x | u) at the guide's own u in the place of q(x)."""
    return elbo(ctx, _integrated(guide, target, 1), target)


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
