"""An amortized answer made exact: importance weights, a diagnosis, and a way out if it is wrong.

Weights of a network's draws: Dax, Green, Gair, Puerrer, Wildberger, Macke, Buonanno and Schoelkopf
(2023), "Neural importance sampling for rapid and reliable gravitational-wave inference", equations
1 to 4; the diagnosis is k-hat, `diagnostics.khat`; defensive mixtures: Owen and Zhou (2000), "Safe
and effective importance sampling", section 2.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PRNGKeyArray

from ...inference.diagnostics.psis import Khat, khat, psis
from ...inference.importance import Importance
from ...inference.mcmc.compositions import Sequence
from ...inference.mcmc.gradient import RandomWalk
from ...inference.mcmc.metropolis_hastings import MH
from ...inference.particles import Particles
from ...inference.samplers.stages import Power
from ...inference.samplers.tempered import Tempered
from ...inference.vi.guides.layout import Layout, layout
from ...inference.vi.mismatch import free_sites
from ...inference.weighted.multiple import MultipleImportance
from ...inference.weighted.scoring import log_densities
from ...ppl.algorithm import Algorithm
from ...ppl.compiled import compiled
from ...ppl.program import as_program
from ...ppl.proposal import Proposal
from ...ppl.selection import select
from ...ppl.status import Status
from ...ppl.target import Target, as_target
from .posterior import NeuralPosterior
from .simulations import positions, simulated

STEPS = (1.0, 0.3, 0.1, 0.03)
"""Scales of the fallback's random walks, in standard deviations of the prior."""


class CorrectionStatus(Status):
    """How the run ended, and whether it was the network's: `note` says which and why."""

    note: str = eqx.field(static=True, default="")

    @property
    def message(self) -> str:
        """What happened and what to do."""
        return f"{super().message}; {self.note}"


class Corrected(Particles):
    """Properly weighted particles; and how far the network was off.

    - `khat`: of these weights. `pilot`, `pilot_ess`: k-hat, and effective sample size a draw, of
      the network's weights in the pilot run, by which it was judged.
    - `fell_back`: the particles are the fallback's. `inside`: was the data set within the range of
      the network's simulations?
    - `status`: its message says all this.
    """

    khat: Khat = eqx.field(static=True)
    pilot: Khat = eqx.field(static=True)
    pilot_ess: float = eqx.field(static=True)
    fell_back: bool = eqx.field(static=True)
    inside: Bool[Array, ""]


def correct(
    key: PRNGKeyArray,
    posterior: Any,
    target: Any,
    draws: int = 1000,
    *,
    pilot: int | None = None,
    least: float = 0.05,
    defensive: float = 0.0,
    fallback: Algorithm | None = None,
    throw: bool = False,
) -> Corrected:
    """The posterior of one target from a network's draws, with weights by the program's density.

    Law: proper weighting, Z-hat unbiased, whatever the network is, if the fallback is so (the
    default is) and the network's law covers the posterior, which a flow or a mixture does; the
    variance is finite where k-hat is below 1/2. Draws of a pilot run, which are then thrown away,
    decide between network and fallback: a decision by the weights that are returned would bias
    them.

    Args:
        key: of pilot and run.
        posterior: of `npe`, with the data in the target's constraints; or any guide of the target,
            for example the one that `finetune` returns. Free sites that it does not draw are drawn
            from the model.
        target: the program with the observed sites as constraints.
        draws: particles of the run.
        pilot: draws that judge the network, half of them the model's own, which see mass that the
            network leaves out if the prior comes there at all; a quarter as many, at least 250, by
            default.
        least: smallest effective sample size a pilot draw for which the network is used. It is not
            used either if the pilot's k-hat is above its threshold, or a weight is NaN or infinite.
        defensive: share of the draws that are the model's own, weighed by the mixture (balance
            heuristic): weights are then at most the likelihood over this share.
        fallback: the algorithm that runs instead; by default tempered SMC from the prior, 30 fixed
            stages with random walks of four sizes.
        throw: raise `InferenceError` if the run's status is not ok.

    Raises:
        ProgramError: as of `NeuralPosterior.at`, or sites that do not fit the target.
    """
    target, key_keys = as_target(target), jax.random.split(key, 3)
    inside = jnp.ones((), bool)
    if isinstance(posterior, NeuralPosterior):
        guide = posterior.at(target.constraints)
        inside = guide.inside
    else:
        guide = as_program(posterior)
    proposal = Proposal(init=guide)
    count = max(125, draws // 8) if pilot is None else -(-pilot // 2)
    tried = MultipleImportance((count, count), (proposal, None)).run(key_keys[0], target)
    log_ratios, covered = _ratios(target, proposal, tried)
    # The network's own draws come first.
    judged, share = Khat(float(psis(log_ratios[:count])[1]), count), float(covered)
    wrong = _complaint(tried, judged, share, least)
    if not wrong:
        mine = round(defensive * draws)
        algorithm: Any = Importance(draws, proposal)
        if mine:
            algorithm = MultipleImportance((draws - mine, mine), (proposal, None))
    else:
        algorithm = fallback or _from_prior(key_keys[2], posterior, target, draws)
    particles = algorithm.run(key_keys[1], target, throw=throw)
    final = khat(particles)
    note = f"by the network, pilot k-hat {judged.k:.2f}, effective share {share:.2f}"
    if wrong:
        note = f"by the fallback {type(algorithm).__name__}, because {wrong}"
    if not bool(inside):
        note += "; the data are outside the range of the network's simulations"
    if not final.ok:
        note += f"; k-hat of these weights is {final.k:.2f}: {final.advice}"
    old = particles.status
    status = CorrectionStatus(old.code, old.step, old.site, old.sites, note)
    fields = {f.name: getattr(particles, f.name) for f in dataclasses.fields(Particles)}
    return Corrected(
        **{**fields, "status": status},
        khat=final,
        pilot=judged,
        pilot_ess=share,
        fell_back=bool(wrong),
        inside=inside,
    )


@compiled
def _ratios(target: Target, proposal: Proposal, tried: Particles) -> Any:
    """Log gamma / q of the pilot's draws, and the network's effective sample size a draw.

    That is 1 / E_posterior[posterior / q], by the pilot's weights: draws of the prior see mass that
    q leaves out, of which its own draws and their k-hat know nothing.
    """

    def one(choices):
        log_gamma, log_q = log_densities(target, (proposal,), choices)
        return log_gamma[-1], log_q[-1, 0]

    log_gamma, log_q = jax.vmap(one)(tried.choices)
    possible = ~jnp.isneginf(log_gamma)
    log_ratios = jnp.where(possible, log_gamma - jnp.where(possible, log_q, 0.0), -jnp.inf)
    weights = jax.nn.log_softmax(tried.log_weights)
    terms = jnp.where(possible, weights + log_ratios, -jnp.inf)
    return log_ratios, jnp.exp(tried.log_evidence - jax.nn.logsumexp(terms))


def _complaint(tried: Particles, judged: Khat, share: float, least: float) -> str:
    """Why the network is not to be used, "" if it is."""
    if not tried.status:
        return f"its pilot run failed ({tried.status.message})"
    if not np.isfinite(float(tried.log_evidence)):
        return "the evidence of its pilot run is not finite"
    if not judged.ok:
        return f"its weights have k-hat {judged.k:.2f} (threshold {judged.threshold:.2f})"
    if share < least:
        return f"its effective sample size a draw is {share:.3f} (at least {least})"
    return ""


def _from_prior(key: PRNGKeyArray, posterior: Any, target: Target, draws: int) -> Algorithm:
    """Tempered SMC from the prior, exponents and kernel fixed before the run."""
    if isinstance(posterior, NeuralPosterior):
        place, scale = posterior.layout, posterior.scale
    else:
        place = layout(target)
        rows = np.asarray(positions(place, simulated(key, target.model, target.args, 500)))
        scale = jnp.asarray(rows[np.isfinite(rows).all(axis=1)].std(axis=0))
    names = sorted({site.path[0] for site in place.sites})
    chosen = select(names[0])
    for name in names[1:]:
        chosen = chosen | select(name)
    sizes = _sorted(place, scale)
    walks: list[Any] = [RandomWalk(chosen, step * sizes) for step in STEPS]
    others = sorted({name.split("/")[0] for name in free_sites(target)} - set(names))
    walks += [MH(select(name)) for name in others]
    return Tempered(draws, Sequence(walks), Power(30, 3.0))


def _sorted(place: Layout, scale: Array) -> Array:
    """The scales in the order of sorted names, which is that of kernels."""
    sites = sorted(place.sites, key=lambda site: site.path)
    return jnp.concatenate([site.part(scale) for site in sites])
