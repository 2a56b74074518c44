"""Sequential quasi-Monte Carlo (Gerber and Chopin 2015, "Sequential quasi Monte Carlo", JRSS B).

Algorithm 3 there: of a point (u, v) of a randomised low-discrepancy set, u chooses the ancestor
along the Hilbert curve and v moves it by the inverse distribution function.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ...ppl.algorithm import Algorithm
from ...ppl.code import Code
from ...ppl.compiled import compiled
from ...ppl.errors import ProgramError
from ...ppl.feynman_kac import FeynmanKac
from ...ppl.hot import is_hot
from ...ppl.proposal import Proposal
from ...ppl.state_space import StateSpace
from ...ppl.target import Target, as_target
from ..driver import Driver
from ..mapping import Vmap
from ..moves import Moves
from ..particles import Particles
from ..record import Record
from ..resampling import Systematic
from ..resampling.base import usable_weights
from ..resampling.cdf import invert, scaled_cdf
from .hilbert import curve_order
from .inverse import Counted, Cursor, Pointed
from .sobol import scrambled_sobol

_NO_DENSITY = (
    "SQMC is no distribution: its particles are drawn together, and a run that retains one is not "
    "known. Use SMC for ppl.normalize, particle MCMC and conditional runs"
)


class SQMC(Algorithm):
    """A particle filter whose particles move by scrambled Sobol' points instead of random numbers.

    Law: as of `SMC`, for every number of particles: proper weighting and unbiased Z-hat, because
    each scrambled point by itself is uniform and the points of different steps are independent; the
    error falls faster than that of SMC as particles are added (o(N^-1/2) for continuous models).
    Within a run particles are not exchangeable, so that single-run variance estimates mean nothing.
    It resamples at every step, and is at its best where `n_particles` is a power of two.

    Sites have to be in the programs themselves (no combinators) and invertible: NumPyro's
    distributions that have an `icdf`, multivariate normals, `Token`, Bernoulli and categorical
    ones; otherwise an error says so. A step should take few coordinates: the gain is lost in high
    dimensions.

    - `proposal`: a `Proposal`, whose sites take the first coordinates.
    - `order(state) -> [k]`: the numbers by which particles are put in order, along the Hilbert
      curve if k > 1 (at most 16). All numbers of the state by default. Any order keeps the law.
    - `record`: what to keep.
    """

    n_particles: int = eqx.field(static=True)
    proposal: Proposal | None = None
    order: Code | None = eqx.field(default=None, converter=lambda f: None if f is None else Code(f))
    record: Record = eqx.field(default_factory=Record.choices)

    def __check_init__(self):
        if self.n_particles < 1:
            raise ValueError(f"SQMC needs at least one particle, got {self.n_particles}")

    def run(self, key: PRNGKeyArray, target: Any, *, throw: bool = False) -> Particles:
        """The weighted population for a target; `throw=True`: see `SMC.run`."""
        particles = _run(self, key, as_target(target))
        if throw and not isinstance(particles.log_evidence, Tracer):
            particles.status.throw()
        return particles

    def run_conditional(self, key, target, retained):
        """An error: not known."""
        raise NotImplementedError(_NO_DENSITY)

    def random_weighted(self, key, target):
        """An error: not known."""
        raise NotImplementedError(_NO_DENSITY)

    def estimate_logpdf(self, key, target, choices):
        """An error: not known."""
        raise NotImplementedError(_NO_DENSITY)


@compiled
def _run(sqmc: SQMC, key: PRNGKeyArray, target: Target) -> Particles:
    fk = FeynmanKac(target, sqmc.proposal)
    driver = Driver(
        sqmc.n_particles,
        target,
        fk,
        Systematic(),
        None,
        None,
        sqmc.record,
        Vmap(),
        None,
        Pointwise(sqmc.n_particles, sqmc.order),
    )
    return driver.finish(driver.advance(key, driver.init(key), jnp.int32(0), driver.length))


class Pointwise(Moves):
    """All particles of a move from one scrambled point set, ancestors along a curve."""

    n_particles: int = eqx.field(static=True)
    order: Code | None

    def needed(self, resampler, size, n):
        """Always, unless all particles are dead."""
        return size > 0

    def init(self, fk, key, i, given, retained):
        """See `Moves.init`."""

        def run(fk):
            return fk.init(key, given, retained)

        d = _dimensions(fk, run, "init")
        points = scrambled_sobol(key, self.n_particles, sum(d))
        return run(_with(fk, "init", points[i], d[0]))

    def step(self, fk, key, i, given, state, t, retained):
        """See `Moves.step`."""

        def run(fk):
            return fk.step(key, given, state, t, retained)

        d = _dimensions(fk, run, "step")
        points = self._points(key, sum(d))
        return run(_with(fk, "step", points[i, 1:], d[0]))

    def ancestors(self, fk, key, resampler, log_weights, states):
        """See `Moves.ancestors`."""
        weights, usable = usable_weights(log_weights)
        order = curve_order(self._numbers(states), weights)
        u = self._points(key, 0)[:, 0].astype(weights.dtype)
        ancestors = order[invert(scaled_cdf(weights[order]), u)]
        return jnp.where(usable, ancestors, jnp.arange(self.n_particles, dtype=jnp.int32))

    def _points(self, key, d: int) -> Float[Array, "n _"]:
        """Points sorted by their first coordinate, which is the same for every d."""
        points = scrambled_sobol(key, self.n_particles, 1 + d)
        return points[jnp.argsort(points[:, 0])]

    def _numbers(self, states: PyTree) -> Float[Array, "n k"]:
        if self.order is not None:
            x = jax.vmap(self.order)(states)
            return x.reshape(self.n_particles, -1).astype(float)
        leaves = jax.tree.leaves(states, is_leaf=is_hot)
        if any(is_hot(x) for x in leaves):
            raise ProgramError(
                "SQMC puts particles in order by their states, but this state has a part inside "
                "Hot: say with order= by which numbers"
            )
        rows = [x.reshape(self.n_particles, -1).astype(float) for x in leaves]
        x = jnp.concatenate(rows, axis=1) if rows else jnp.zeros((self.n_particles, 0))
        if x.shape[1] > 16:
            raise ProgramError(
                f"SQMC puts particles in order by at most 16 numbers, but the state has "
                f"{x.shape[1]}: say with order= by which"
            )
        return x


def _parts(fk: FeynmanKac, part: str) -> tuple[Any, Any]:
    """The proposal's program of a move, and the model's."""
    return getattr(fk.proposal, part, None), getattr(fk.model, part)


def _replaced(fk: FeynmanKac, part: str, proposal: Any, model: Any) -> FeynmanKac:
    """The view with other programs for a move."""
    old, q = fk.model, fk.proposal
    new = {"init": old.init, "step": old.step, part: model}
    whole = StateSpace(
        new["init"], new["step"], old.length, old.done, old.at_length, old.replayer, old.bound
    )
    if q is not None and proposal is not None:
        other = {"init": q.init, "step": q.step, part: proposal}
        q = Proposal(other["step"], other["init"], q.bound)
    target = Target(whole, fk.target.args, fk.target.constraints, fk.target.exponent)
    return FeynmanKac(target, q)


def _dimensions(fk: FeynmanKac, run: Any, part: str) -> tuple[int, int]:
    """How many coordinates the proposal and the model take in a move."""
    proposal, model = _parts(fk, part)
    cursors = (Cursor(None), Cursor(None))
    counted = None if proposal is None else Counted(proposal, cursors[0])
    jax.eval_shape(lambda: run(_replaced(fk, part, counted, Counted(model, cursors[1]))))
    return cursors[0].taken, cursors[1].taken


def _with(fk: FeynmanKac, part: str, point: Float[Array, " d"], split: int) -> FeynmanKac:
    """The view with the randomness of a move taken from a point."""
    proposal, model = _parts(fk, part)
    pointed = None if proposal is None else Pointed(proposal, point[:split])
    return _replaced(fk, part, pointed, Pointed(model, point[split:]))
