"""Neural posterior estimation: a conditional density trained on a program's own draws.

Papamakarios and Murray (2016), "Fast epsilon-free inference of simulation models with Bayesian
conditional density estimation", section 2; with flows and no corrections for proposals: Lueckmann,
Boelts, Greenberg, Goncalves and Macke (2021), "Benchmarking simulation-based inference", NPE.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ...inference import vi
from ...inference.vi.fit import FitStatus
from ...inference.vi.guides.layout import Layout
from ...ppl.compiled import compiled
from ...ppl.generative import GenerativeFunction
from ...ppl.partial import Choices
from ...ppl.program import as_program
from .density import Ensemble
from .encoders import plain_encoder
from .flows import spline_flow
from .inputs import Inputs, Observed, Values, fit_inputs
from .posterior import NeuralPosterior, log_scores
from .simulations import checked, draws, layouts, observations, positions, simulated
from .training import Descent, adam, train

PILOT = 2000
"""Simulations by which inputs and coordinates are standardized, where data are drawn fresh."""


def npe(
    key: PRNGKeyArray,
    program: Any,
    observed: Sequence[str],
    *,
    latents: Sequence[str] | None = None,
    args: tuple = (),
    simulations: int | Choices | None = None,
    masked: bool = False,
    encoder: Callable = plain_encoder,
    head: Callable = spline_flow,
    members: int = 1,
    steps: int = 2000,
    batch: int = 256,
    learning_rate: float = 2e-3,
    validation: float = 0.1,
    patience: int | None = None,
    **options: Any,
) -> NeuralPosterior:
    """Train q(latents | observed): maximize E log q over draws (latents, observed) of a program.

    Heuristic: a local maximum over the family; where both are wide enough the maximum is the
    posterior. `correct` makes it exact at one target.

    Args:
        key: of simulations, weights, batches.
        program: what samples latents and data; it may have no `observe` and no `factor`.
        observed: names of sites (or calls) that will be known.
        latents: names of sites (or calls) of the answer, continuous; all the rest by default. Sites
            in neither are integrated out.
        args: of the program.
        simulations: None: fresh draws at every step; a number: so many draws once, or choices
            [n, ...] that were drawn from it before. Then a share `validation` of them is kept
            apart; the network returned is the one after the chunk of `every` steps that scores
            highest there.
        masked: train for every subset of the observed sites and their instances.
        encoder: of (key, shapes): `plain_encoder`, `set_encoder`, `sequence_encoder`, or one of
            these with options, `functools.partial(set_encoder, width=32)`.
        head: of (key, d, length of the vector): `spline_flow`, `mixture_density`.
        members: how many networks, trained alike from different starts; the posterior is their
            mixture, which is wider where they do not agree.
        steps: of training, at most; the learning rate falls to 0 along a cosine.
        batch: data sets in one step.
        learning_rate: the highest.
        validation: share of the simulations, between 0 and 1.
        patience: stop after so many steps without a higher score on the validation share (of fresh
            draws: a higher mean over a chunk).
        options: of `train`: `every`, `progress`, `callback`; and `checkpoint` for fresh draws.

    Raises:
        ProgramError: a site that does not exist, a discrete latent, an observed number that is not
            finite, coordinates as of `vi.guides.mean_field`.
    """
    if simulations is not None and "checkpoint" in options:
        raise ValueError(
            "a checkpoint is for fresh draws; of a fixed number of simulations keep the "
            "simulations themselves and give them again, simulations=choices"
        )
    key_pilot, key_net, key_train = jax.random.split(key, 3)
    program, observed = as_program(program), tuple(observed)
    given = simulations if isinstance(simulations, dict) else None
    n = simulations if isinstance(simulations, int) else PILOT
    choices = simulated(key_pilot, program, args, n) if given is None else given
    sites, place = layouts(program, args, choices, observed, latents)
    data, position = checked(sites, observations(sites, choices)), positions(place, choices)
    inputs = fit_inputs(sites, masked, data)
    rows = np.asarray(position)
    rows = rows[np.isfinite(rows).all(axis=1)]
    loc, scale = jnp.asarray(rows.mean(axis=0)), jnp.asarray(rows.std(axis=0))
    net = _networks(key_net, inputs, place.size, encoder, head, members)
    options = {"every": 100, **options}
    fixed = None if simulations is None else ((position - loc[None]) / scale[None], data)
    loss = _Loss(program, args, inputs, loc, scale, fixed, place, sites, batch, members)
    if fixed is None:
        options = {"patience": patience, **options}
        fit = train(key_train, net, loss, steps, learning_rate=learning_rate, **options)
        (first, second), status = fit.params, fit.status
        log_score = jnp.asarray(jnp.nan, dtype=float)
    else:
        plan = _Plan(steps, learning_rate, validation, patience)
        (first, second), log_score, status = _validated(key_train, net, loss, plan, options)
        log_score = log_score - jnp.sum(jnp.log(scale))
    return NeuralPosterior(first, second, inputs, loc, scale, log_score, status, place, members)


class _Loss(eqx.Module):
    """Minus the mean log score of a batch, drawn from the program or from the simulations."""

    program: GenerativeFunction
    args: tuple
    inputs: Inputs
    loc: Float[Array, " d"]
    scale: Float[Array, " d"]
    fixed: tuple[Float[Array, "n d"], Values] | None
    layout: Layout = eqx.field(static=True)
    sites: tuple[Observed, ...] = eqx.field(static=True)
    batch: int = eqx.field(static=True)
    members: int = eqx.field(static=True)

    def __call__(self, net: Any, key: PRNGKeyArray) -> Float[Array, ""]:
        key_data, key_mask = jax.random.split(key)
        if self.fixed is None:
            choices = draws(key_data, self.program, self.args, self.batch)
            z = (jax.vmap(self.layout.position)(choices) - self.loc[None]) / self.scale[None]
            values = observations(self.sites, choices)
        else:
            n = self.fixed[0].shape[0]
            rows = jax.random.randint(key_data, (self.batch,), 0, n)
            z, values = jax.tree.map(lambda x: x[rows], self.fixed)
        return -jnp.mean(self.scores(net, key_mask, z, values))

    def scores(
        self, net: Any, key: PRNGKeyArray, z: Float[Array, "n d"], values: Values
    ) -> Float[Array, " members"]:
        """Each member's mean log density of standardized coordinates."""
        keys = jax.random.split(key, z.shape[0])
        mask = self.inputs.mask if self.inputs.masked else lambda _: self.inputs.whole()
        known = jax.vmap(mask)(keys)
        # A bounded value drawn at its very bound has no coordinates.
        good = jnp.all(jnp.isfinite(z), axis=1, keepdims=True)
        each = log_scores(
            net, self.members, self.inputs, jnp.where(good, z, jnp.zeros_like(z)), values, known
        )
        each = jnp.where(good, each, jnp.zeros_like(each))
        return jnp.sum(each, axis=0) / jnp.maximum(jnp.sum(good), 1).astype(each.dtype)


class _Plan(eqx.Module):
    steps: int
    learning_rate: float
    validation: float
    patience: int | None


def _validated(
    key: PRNGKeyArray, net: Any, loss: _Loss, plan: _Plan, options: dict[str, Any]
) -> tuple[Any, Float[Array, ""], FitStatus]:
    """The best networks on simulations kept apart, their mean score, the status."""
    assert loss.fixed is not None
    key_split, key_mask, key_train = jax.random.split(key, 3)
    n = loss.fixed[0].shape[0]
    apart = math.ceil(plan.validation * n)
    if not 0 < apart < n:
        raise ValueError(
            f"validation={plan.validation} of {n} simulations leaves nothing on one side: give a "
            "share between 0 and 1, or fresh draws, simulations=None"
        )
    order = jax.random.permutation(key_split, n)
    held, used = (
        jax.tree.map(lambda x, i=i: x[i], loss.fixed) for i in (order[:apart], order[apart:])
    )
    loss = eqx.tree_at(lambda m: m.fixed, loss, used)
    optimizer = adam(plan.steps, plan.learning_rate, plan.steps // 20, clip=5.0)
    every, show = options["every"], {k: v for k, v in options.items() if k != "every"}
    state, status, done, waited = None, None, 0, 0
    best, top = net, jnp.full((loss.members,), -jnp.inf)
    while done < plan.steps:
        new = min(every, plan.steps - done)
        fit = vi.fit(
            key_train,
            Descent(loss),
            net,
            optimizer=optimizer,
            steps=new,
            every=every,
            state=state,
            **{"progress": False, **show},
        )
        net, state, status, done = fit.params, fit.state, fit.status, done + new
        scores = _score(loss, net, key_mask, *held)
        better = scores > top
        waited = 0 if bool(better.any()) else waited + new
        best, top = _chosen(better, net, best, loss.members), jnp.maximum(scores, top)
        if int(status.code) and int(status.skipped) >= done:
            break
        if plan.patience is not None and waited >= plan.patience:
            break
    assert status is not None
    return best, jnp.mean(top), status


@compiled
def _score(loss: _Loss, net: Any, key: PRNGKeyArray, z: Array, values: Values) -> Array:
    return loss.scores(net, key, z, values)


def _chosen(better: Array, new: Any, old: Any, members: int) -> Any:
    """Each member's network, the new one where it is better."""

    def leaf(new, old):
        if not eqx.is_array(new):
            return new
        if members == 1:
            return jnp.where(better[0], new, old)
        return jnp.where(better.reshape((-1,) + (1,) * (new.ndim - 1)), new, old)

    return jax.tree.map(leaf, new, old)


def _networks(
    key: PRNGKeyArray, inputs: Inputs, size: int, encoder: Callable, head: Callable, members: int
) -> Any:
    """Encoder and head; of an ensemble stacked."""

    def one(key):
        key_encoder, key_head = jax.random.split(key)
        first = encoder(key_encoder, inputs.shapes)
        return first, head(key_head, size, first.size)

    if members == 1:
        return eqx.filter_jit(one)(key)
    first, second = eqx.filter_jit(eqx.filter_vmap(one))(jax.random.split(key, members))
    return first, Ensemble(second, members)
