"""Sequences with weights as arrays, and what a twist sees along them: the data of its losses."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ...inference.particles import Particles
from ...inference.smc import SMC
from ...ppl.compiled import compiled
from ...ppl.generative import Request, likelihood
from ...ppl.partial import Choices, as_given, total
from ...ppl.proposal import Proposal
from ...ppl.target import Target, as_target
from .view import View


class Walks(eqx.Module):
    """n sequences of T steps, read along a model; step t leads from prefix t to prefix t + 1.

    - `features`, `known`: what the view sees before step t. `tokens`: the value made at step t.
    - `active`: false after a finish. There all weights are 0.
    - `log_start`: weight of the model's init, nats.
    - `log_gain`: weight of step t under the target (factors, constraints), nats; what `at_length`
      says is part of the last.
    - `log_ratio`: log density of the model over that of what drew step t; 0 for the model's draws.
    - `log_weights`: of whole sequences, for the target; as an algorithm gave them.
    - `log_law`: log probabilities of all values at step t, if asked for.
    """

    features: Float[Array, "n T D"]
    known: Float[Array, "n T"]
    tokens: Int[Array, "n T"]
    active: Bool[Array, "n T"]
    log_start: Float[Array, "n"]
    log_gain: Float[Array, "n T"]
    log_ratio: Float[Array, "n T"]
    log_weights: Float[Array, "n"]
    log_law: Float[Array, "n T V"] | None = None

    @property
    def log_future(self) -> Float[Array, "n T"]:
        """Log weight of steps t, t + 1, ... together."""
        return jnp.cumsum(self.log_gain[:, ::-1], axis=1)[:, ::-1]

    @property
    def log_past(self) -> Float[Array, "n T"]:
        """Log weight of init and steps 0 .. t - 1, for the law of what was drawn."""
        steps = (self.log_gain + self.log_ratio)[:, :-1]
        return jnp.cumsum(jnp.concatenate([self.log_start[:, None], steps], axis=1), axis=1)

    def take(self, index: Int[Array, "m"]) -> "Walks":
        """The sequences at `index`, with their weights: a minibatch."""
        return jax.tree.map(lambda x: x[index], self)


def walks(
    target: Any,
    draws: Particles | Choices,
    view: View,
    log_weights: Float[Array, "n"] | None = None,
    *,
    proposal: Proposal | None = None,
    law: bool = False,
    batch_size: int | None = None,
) -> Walks:
    """Read sequences along a target's model, by one pass with all choices given.

    Args:
        target: a target, or a model that needs no args; its model a StateSpace.
        draws: particles, whose choices and weights are taken; or choices with a leading axis n.
        view: what is kept of each state.
        log_weights: instead of the particles' own; of choices 0 if not given.
        proposal: what drew the sites of the steps, for `log_ratio`; the model if None.
        law: keep the log probabilities of all values, [n, T, V].
        batch_size: sequences that are read at a time; all by default.
    """
    choices = draws.choices if isinstance(draws, Particles) else draws
    n = jax.tree.leaves(choices)[0].shape[0]
    if log_weights is None:
        log_weights = draws.log_weights if isinstance(draws, Particles) else jnp.zeros(n)
    return _walks(as_target(target), choices, view, log_weights, proposal, law, batch_size)


@compiled
def _walks(target, choices, view, log_weights, proposal, law, batch_size) -> Walks:
    def one(inputs):
        return _walk(target, inputs[0], view, proposal, law, inputs[1])

    keys = jax.random.split(jax.random.key(0), log_weights.shape[0])  # for estimated densities
    if batch_size is None:
        rows = jax.vmap(one)((choices, keys))
    else:
        rows = jax.lax.map(one, (choices, keys), batch_size=batch_size)
    return Walks(log_weights=log_weights, **rows)


def _walk(
    target: Target,
    choices: Choices,
    view: View,
    proposal: Proposal | None,
    law: bool,
    key: PRNGKeyArray,
) -> dict:
    model, fixed = target.state_space(), as_given(target.constraints)
    args = (*model.bound, *target.args)
    first, steps = model.split(target.joined(choices), target.args)
    fixed_first, fixed_steps = model.split(fixed, target.args)
    complete = Request(complete=True)
    start = model.start(key, first, target.args, complete)
    weight = likelihood(start, fixed_first)
    log_start = target.raised(weight, weight)

    def step(state, inputs):
        t, given, fixed = inputs
        active = ~model.finished(state)
        out = model.advance(jax.random.fold_in(key, t), given, state, t, target.args, complete)
        weight = likelihood(out, fixed)
        row = {
            "features": view.features(state, t, *args),
            "known": view.known_of(state, t, *args),
            "tokens": out.choices[view.site].astype(jnp.int32),
            "active": active,
            "log_gain": target.raised(weight, weight),
            "log_ratio": jnp.zeros_like(weight),
        }
        if proposal is not None and proposal.step is not None:
            own = {name: out.log_probs[name] for name in out.log_probs if name not in fixed}
            at = (state, t, *proposal.bound, *args)
            drawn = proposal.step.run(key, given, at, complete).log_probs
            ratio = total({name: own[name] for name in drawn}) - total(drawn)
            row["log_ratio"] = jnp.where(active, ratio, 0.0)
        if law:
            row["log_law"] = jax.nn.log_softmax(view.law_of(state, t, *args))
        return out.retval, row

    ts = jnp.arange(model.length, dtype=jnp.int32)
    last, rows = jax.lax.scan(step, start.retval, (ts, steps, fixed_steps))
    end = model.at_length.log_weight(model.finished(last))
    gain = rows["log_gain"].at[-1].add(end.astype(rows["log_gain"].dtype))
    return {**rows, "log_gain": gain, "log_start": log_start.astype(gain.dtype)}


class Populations(eqx.Module):
    """The populations of a particle filter after each of T steps.

    Particle n of step t was drawn where its ancestor stood: `features`, `known` and `log_law` are
    of that state. `log_weights` [T, N] are those after the step, the last with `at_length`'s.
    """

    features: Float[Array, "T n D"]
    known: Float[Array, "T n"]
    tokens: Int[Array, "T n"]
    active: Bool[Array, "T n"]
    log_weights: Float[Array, "T n"]
    log_law: Float[Array, "T n V"]


def populations(key: PRNGKeyArray, smc: SMC, target: Any, view: View) -> Populations:
    """Run a particle filter and keep each step's population, as drawn."""
    return _populations(key, smc, as_target(target), view)


@compiled
def _populations(key, smc, target, view) -> Populations:
    driver = smc.driver(target)
    model = driver.fk.model
    args = (*model.bound, *target.args)
    start = driver.init(key)

    def step(population, t):
        def seen(state):
            law = jax.nn.log_softmax(view.law_of(state, t, *args))
            state_known = view.known_of(state, t, *args)
            return view.features(state, t, *args), state_known, law, ~model.finished(state)

        before = jax.vmap(seen)(population.state)
        population = driver.advance(key, population, t, 1)
        features, known, law, active = jax.tree.map(lambda x: x[population.ancestors[t]], before)
        tokens = population.store["choices"][view.site][t].astype(jnp.int32)
        ending = jnp.where(t == driver.length - 1, jax.vmap(driver.fk.end)(population.state), 0.0)
        weights = population.log_weights + ending.astype(population.log_weights.dtype)
        return population, (features, known, tokens, active, weights, law)

    rows = jax.lax.scan(step, start, jnp.arange(driver.length, dtype=jnp.int32))[1]
    return Populations(*rows)
