"""Particle variational inference: a swarm of equally weighted particles moved by an optimizer.

Coin sampling: Sharrock and Nemeth (2023), "Coin sampling: gradient-based Bayesian inference without
learning rates", algorithm 1 with the adaptive bets of Orabana and Tommasi (2017), algorithm 1.
"""

import os
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ....ppl.compiled import compiled
from ....ppl.partial import Choices
from ....ppl.target import Target, as_target
from ..fit import fit
from ..guides.layout import Layout, layout
from ..training import FitStatus
from .directions import SVGD, Direction
from .discrepancy import stein_discrepancy
from .kernels import IMQ, RadialKernel


def coin() -> optax.GradientTransformation:
    """The step of coin betting: no learning rate.

    Each coordinate x of each particle bets on its direction g: with L the largest |g| so far, A the
    sum of |g| and R = max(R + (x - x_0) g, 0) the winnings, x = x_0 + (sum of g) (L + R) / (L (A +
    L)). The first move is half a unit; give sites a scale of about one.
    """
    return optax.contrib.cocob(alpha=1.0)


class Swarm(eqx.Module):
    """Particles that interact, all of the same weight: a heuristic set, no weighted population.

    There is no evidence estimate, and expectations are biased at every finite n; as n and the steps
    grow they tend to the posterior's where the method converges.

    - `choices`: leading axis n; `positions` [n, d]: their coordinates.
    - `ksd` [steps]: the kernelized Stein discrepancy before each step (`monitor`'s kernel).
    - `status`: ok, or the step at which a density or gradient was not finite.
    """

    choices: Choices
    positions: Float[Array, "n d"]
    ksd: Float[np.ndarray, " steps"]
    status: FitStatus

    def expectation(self, f: Callable[[Choices], Any]) -> PyTree:
        """The mean of `f(choices)` over the particles."""

        def mean(x):
            x = x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(float)
            return jnp.mean(x, axis=0)

        return jax.tree.map(mean, jax.vmap(f)(self.choices))


class ParticleVI(eqx.Module):
    """`ParticleVI(n_particles, steps, direction, optimizer)`: move a swarm to the posterior.

    - `direction`: `SVGD(kernel)` or `KSDDescent(kernel)`; `optimizer`: Optax's, or `coin()` (the
      default), which has no rate to set: Coin SVGD and Coin KSDD.
    - `monitor`: the kernel of the discrepancy that is recorded; IMQ of bandwidth 1.

    For targets whose free sites are continuous. Deterministic, but for where particles start:
    draws of the model under the constraints.
    """

    n_particles: int = eqx.field(static=True)
    steps: int = eqx.field(static=True, default=1000)
    direction: Direction = eqx.field(default_factory=SVGD)
    optimizer: Any = eqx.field(static=True, default=None)
    monitor: RadialKernel = eqx.field(default_factory=lambda: IMQ(1.0))

    def run(
        self,
        key: PRNGKeyArray,
        target: Any,
        *,
        init: Choices | None = None,
        every: int = 100,
        progress: bool = False,
        checkpoint: str | os.PathLike | None = None,
        throw: bool = False,
    ) -> Swarm:
        """The swarm after `steps` steps; `init` choices [n, ...] to start from.

        `every`, `progress`, `checkpoint` and `throw` are those of `vi.fit`, which runs it: a step
        with a number that is not finite is not taken, for any particle.
        """
        target = as_target(target)
        place = layout(target)
        start = _start(key, target, place, self.n_particles, init)
        done = fit(
            key,
            _Moves(self.direction, self.monitor, place),
            start,
            (target,),
            optimizer=self.optimizer or coin(),
            steps=self.steps,
            every=min(every, max(self.steps, 1)),
            progress=progress,
            checkpoint=checkpoint,
            throw=throw,
        )
        choices = _choices(place, done.params)
        return Swarm(choices, done.params, -done.values, done.status)


class _Moves(eqx.Module):
    """The estimator: minus the discrepancy as value, the direction as gradient."""

    direction: Direction
    monitor: RadialKernel
    place: Layout = eqx.field(static=True)

    def __call__(self, key, x, target):
        def log_density(z):
            return self.place.log_density(target, z)

        direction, scores = self.direction(x, log_density)
        ksd = jnp.sqrt(jnp.maximum(stein_discrepancy(x, scores, self.monitor), 0.0))
        possible = jnp.all(jnp.isfinite(jax.vmap(log_density)(x)))
        return jnp.where(possible, -ksd, jnp.nan), direction


@compiled
def _start(
    key: PRNGKeyArray, target: Target, place: Layout, n: int, init: Choices | None
) -> Float[Array, "n d"]:
    if init is not None:
        x = jax.vmap(place.position)(init)
        if x.shape[0] != n:
            raise ValueError(f"init holds {x.shape[0]} particles, but n_particles is {n}")
        return x

    def one(key):
        trace, _ = target.model.generate(key, target.constraints, *target.args)
        return place.position(trace.choices)

    return jax.vmap(one)(jax.random.split(key, n))


@compiled
def _choices(place: Layout, x: Float[Array, "n d"]) -> Choices:
    return jax.vmap(lambda z: place.choices(z)[0])(x)
