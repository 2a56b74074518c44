"""The identity law of proposals: proposing what the model would draw changes no weight."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ..feynman_kac import FeynmanKac
from ..generative import Request, given_masks
from ..partial import as_given, total
from ..proposal import Proposal
from ..target import as_target
from .result import LawResult, decide, roundings
from .statistics import batches

ADVICE = (
    "With this proposal weights differ from the bootstrap weights of the same choices, so it is "
    "not the model's own law of the sites that it draws; that is no error unless it was meant "
    "to be. A proposal for which this fails should pass laws.proper_weighting."
)


class _Path(eqx.Module):
    """The weight of one guided path, and the bootstrap weight of the same choices."""

    view: FeynmanKac

    def __call__(self, key: PRNGKeyArray) -> Float[Array, " 2"]:
        target, model = self.view.target, self.view.model
        given_init, given_steps = self.view.split(target.constraints)
        first = self.view.init(jax.random.fold_in(key, 0), given_init)

        def body(carry, inputs):
            state, log_w = carry
            t, given = inputs
            moved = self.view.step(jax.random.fold_in(key, t + 1), given, state, t)
            return (moved.state, log_w + moved.log_potential), moved.choices

        (state, log_w), later = jax.lax.scan(
            body,
            (first.state, first.log_potential),
            (jnp.arange(model.length), given_steps),
            length=model.length,
        )
        given = as_given(target.constraints)
        out = model.run(
            None, as_given({**first.choices, **later}), target.args, Request(complete=True)
        )
        fixed = total(out.log_probs, given_masks(out.log_probs, given))
        return jnp.stack([log_w + self.view.end(state), fixed + out.log_weight])


def identity_proposal(
    key: PRNGKeyArray, target: Any, proposal: Proposal, *, runs: int = 2**11
) -> LawResult:
    """Check that a proposal meant to be the model's own law leaves the weights as they are.

    Law, path by path and not only on average: if the proposal draws each of its sites from the
    distribution the model has there, the product of the potentials along a path is the bootstrap
    weight of its choices, exp(log_weight) times the density of the constrained sites; so, if
    nothing is observed or constrained, the weight is constant. Up to rounding, whatever the
    constraints.
    """
    one = _Path(FeynmanKac(as_target(target), proposal))

    def measure(key, runs):
        worst = 0.0
        for pairs, count in batches(one, key, runs):
            guided, bootstrap = np.asarray(pairs, np.float64)[:count].T
            both = np.isneginf(guided) & np.isneginf(bootstrap)
            with np.errstate(invalid="ignore"):
                scale = np.where(np.isfinite(bootstrap), bootstrap, 0)
                worst = max(worst, roundings(np.where(both, 0, guided - bootstrap), scale))
        return {"guided weight = bootstrap weight": worst}, []

    return decide("identity proposal", measure, key, runs, ADVICE)
