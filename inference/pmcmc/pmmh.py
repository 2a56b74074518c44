"""Particle marginal Metropolis-Hastings: parameters moved by estimates of the evidence.

Andrieu, Doucet and Holenstein (2010), section 2.4.2; pseudo-marginal: Andrieu and Roberts (2009).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ...ppl.compiled import compiled
from ...ppl.errors import ProgramError
from ...ppl.generative import GenerativeFunction, Request
from ...ppl.partial import Choices, as_given, total
from ...ppl.program import as_program
from ..mcmc.transition import log_uniform
from ..particles import log_mean_exp
from ..population import Population
from ..smc import SMC
from ..smoothing.backward import categorical
from ..smoothing.forward import filtering
from ..smoothing.stepping import final_log_weights, run_steps
from .parametric import Parametric, Prior
from .sweep import traced_back


class Filtered(eqx.Module):
    """Parameters, the filter's population at them, and its log Z-hat (nats)."""

    at: Prior
    population: Population
    log_evidence: Float[Array, ""]

    def log_density(self, drawn: bool) -> Float[Array, ""]:
        """Log prior plus log Z-hat, of the prior only the weight if parameters are drawn from it.

        -inf if one of them is zero.
        """
        prior = self.at.log_weight if drawn else self.at.log_density
        dead = jnp.isneginf(prior) | jnp.isneginf(self.log_evidence)
        return jnp.where(dead, -jnp.inf, prior + self.log_evidence)


class ParameterDraws(eqx.Module):
    """What a chain went through, one entry a move.

    - `choices` [moves, ...]: of parameters and model together; a path is drawn at each move.
    - `log_evidence` [moves]: log Z-hat at the current parameters. `accepted` [moves].
    """

    choices: Choices
    log_evidence: Float[Array, "*moves"]
    accepted: Float[Array, "*moves"]


class PMMH(eqx.Module):
    """`PMMH(smc, proposal)`: Metropolis-Hastings on parameters, the likelihood being Z-hat.

    `proposal(ctx, params)` is a program that gets the choices of the parameters and draws new ones
    at the sites it names; None draws all from the prior.

    Law: leaves gamma(theta, x) of a `Parametric` invariant, x a path drawn from the run, for every
    number of particles. Z-hat is never computed again for the current parameters, nor is a density
    of `params` that is only estimated (`marginal`, `normalize`); one of the model is part of the
    run. A run that died is never accepted.
    """

    smc: SMC
    proposal: GenerativeFunction | None

    def __init__(self, smc: SMC, proposal: Any = None):
        filtering(smc)
        self.smc, self.proposal = smc, None if proposal is None else as_program(proposal)

    def run(
        self, key: PRNGKeyArray, model: Parametric, moves: int, start: Choices | None = None
    ) -> ParameterDraws:
        """A chain; `start` are choices of parameters and model, by default drawn from the prior.

        Started at an exact posterior draw it is stationary (the run is then conditional on it), if
        no density is estimated: what estimates a draw was made with cannot be told from it.
        """
        return _run(self, key, model, moves, start)

    def filtered(
        self,
        key: PRNGKeyArray,
        model: Parametric,
        prior: Prior,
        retained: Choices | None = None,
        steps: Int[Array, ""] | None = None,
    ) -> Filtered:
        """The filter at these parameters, up to a number of steps."""
        driver = filtering(self.smc).driver(model.at(prior.theta), retained)
        population = run_steps(driver, key, steps)
        log_evidence = log_mean_exp(final_log_weights(driver, population, steps))
        return Filtered(prior, population, log_evidence)

    def move(
        self,
        key: PRNGKeyArray,
        model: Parametric,
        old: Filtered,
        steps: Int[Array, ""] | None = None,
    ) -> tuple[Filtered, Float[Array, ""]]:
        """Propose parameters and run the filter there; returns 1 if accepted, else 0."""
        key_propose, key_run, key_accept = jax.random.split(key, 3)
        prior, log_ratio = self.propose(key_propose, model, old.at.choices)
        new = self.filtered(key_run, model, prior, None, steps)
        drawn = self.proposal is None
        log_ratio = log_ratio + new.log_density(drawn) - old.log_density(drawn)
        accept = log_uniform(key_accept, log_ratio) < log_ratio
        pick = jax.tree.map(lambda a, b: jnp.where(accept, a, b), new, old)
        return pick, accept.astype(log_ratio.dtype)

    def propose(
        self, key: PRNGKeyArray, model: Parametric, params: Choices
    ) -> tuple[Prior, Float[Array, ""]]:
        """New parameters and log q(old | new) - log q(new | old)."""
        if self.proposal is None:
            return model.draw(key), jnp.zeros(())
        key, key_reverse, key_prior = jax.random.split(key, 3)
        draft = self.proposal.run(key, {}, (params,))
        names = set(draft.choices)
        unknown = sorted(names - set(params))
        fixed = sorted(names & set(model.params.constraints))
        if unknown or fixed:
            raise ProgramError(
                f"the proposal draws {unknown + fixed}; it may draw only free sites of params, "
                f"which has {sorted(params)} and of them fixes {sorted(model.params.constraints)}"
            )
        new = {**params, **draft.choices}
        back = as_given({name: params[name] for name in names})
        reverse = self.proposal.run(key_reverse, back, (new,), Request(complete=True))
        log_ratio = total(reverse.log_probs) - total(draft.log_probs)
        return model.prior(new, key_prior), log_ratio

    def path(self, key: PRNGKeyArray, model: Parametric, current: Filtered) -> Choices:
        """Choices of the parameters, and of a path drawn from the run by weight."""
        driver = filtering(self.smc).driver(model.at(current.at.theta))
        last = categorical(key, final_log_weights(driver, current.population))
        return model.joined(current.at.choices, traced_back(driver, current.population, last))


@compiled
def _run(
    pmmh: PMMH, key: PRNGKeyArray, model: Parametric, moves: int, start: Choices | None
) -> ParameterDraws:
    key_params, key_run, key_moves = jax.random.split(key, 3)
    if start is None:
        first = pmmh.filtered(key_run, model, model.draw(key_params))
    else:
        params, path = model.split(start)
        first = pmmh.filtered(key_run, model, model.prior(params, key_params), path)
        # Only a conditional run has someone at a position.
        first = eqx.tree_at(lambda f: f.population.position, first, jnp.int32(-1))

    def move(current, i):
        key_move, key_path = jax.random.split(jax.random.fold_in(key_moves, i))
        current, accepted = pmmh.move(key_move, model, current)
        choices = pmmh.path(key_path, model, current)
        return current, ParameterDraws(choices, current.log_evidence, accepted)

    return jax.lax.scan(move, first, jnp.arange(moves))[1]
