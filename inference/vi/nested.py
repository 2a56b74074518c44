"""Guides and targets whose densities are estimated: what must hold for their gradients."""

from typing import Any

import jax

from ...ppl.algorithm import Algorithm
from ...ppl.errors import ProgramError
from ...ppl.generative import Request
from ...ppl.nested import Marginal, Normalize
from ...ppl.partial import as_given
from ...ppl.probe import Probe
from ..importance import Importance
from ..smc import SMC
from .strategies.base import is_reparameterized, type_name


class _Reparameterized(Probe):
    """Raises at a draw that does not carry its gradient."""

    who: str
    fixed: Any

    def report(self, path, key, d, value, log_prob):
        """None."""
        node = self.fixed
        for name in path:
            node = node.get(name) if isinstance(node, dict) else None
        if node is None and not is_reparameterized(d):
            raise ProgramError(
                f"{self.who} draws {'/'.join(path)!r} from {type_name(d)} inside an estimated "
                "density, where gradients pass by reparameterized draws only: give it a strategy "
                "(in a guide by ppl.marginal with Importance(n)), draw it in the guide itself, "
                "or use a continuous distribution"
            )

    def estimated(self, path, d):
        """See `Probe.estimated`."""
        check_differentiable(f"{self.who}, {'/'.join(path)}", d)


def check_differentiable(who: str, d: Any) -> None:
    """Raise unless gradients pass without bias through draws and density estimates of `d`."""
    if isinstance(d, Normalize):
        raise ProgramError(
            f"{who!r} is a ppl.normalize, which picks one of its particles: that has a gradient "
            "only where it is drawn by the objective itself, ctx.draw(name, ppl.normalize(...))"
        )
    if isinstance(d, Marginal):
        check_algorithm(who, d.algorithm)
        check_draws(who, d.target, d.algorithm)


def is_plain(guide: Any) -> bool:
    """Is it a marginal whose density is estimated by draws of its own program?"""
    if not isinstance(guide, Marginal) or not isinstance(guide.algorithm, Importance):
        return False
    return guide.algorithm.proposal is None


def check_algorithm(who: str, algorithm: Algorithm) -> None:
    """Raise unless the algorithm is importance sampling: resampling has no gradient."""
    smc = algorithm.smc if isinstance(algorithm, Importance) else algorithm
    if not isinstance(smc, SMC) or smc.resampler is not None or smc.kernel is not None:
        raise ProgramError(
            f"{who!r} estimates its density by {type(algorithm).__name__}, whose discrete choices "
            "have no gradient: use inference.Importance(n) there, or the objective vi.vsmc"
        )


def check_draws(who: str, target: Any, algorithm: Any) -> None:
    """Raise unless all that the model and the algorithm's proposal draw is reparameterized."""
    model, key = target.state_space(), jax.random.key(0)
    proposal = getattr(algorithm, "proposal", None)
    fixed, all_drawn = dict(as_given(target.constraints)), Request(probe=_Reparameterized(who, {}))
    if proposal is not None:
        args = (*proposal.bound, *model.bound, *target.args)
        state = jax.eval_shape(lambda: model.start(key, {}, target.args)).retval

        def drafts(state):
            out = []
            for program, args_ in ((proposal.init, args), (proposal.step, (state, 0, *args))):
                if program is not None:
                    out.append(program.run(key, {}, args_, all_drawn).choices)
            return out

        for choices in jax.eval_shape(drafts, state):
            fixed.update(choices)
    # The model's own draws, of what neither constraints nor the proposal give.
    request = Request(probe=_Reparameterized(who, fixed))
    jax.eval_shape(lambda: model.run_to(key, {}, target.args, None, request).log_weight)
