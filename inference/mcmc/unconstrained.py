"""A target as a density on R^d of some of its continuous sites, the rest held fixed.

Each site is mapped by NumPyro's `biject_to(support)` inside the run of its program, so that a
support may depend on other sites (`Uniform(0, x)`). A program is run by a context of its own, put
in by replacing the programs in the model; nothing global is touched.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PRNGKeyArray
from numpyro.distributions.transforms import biject_to

from ...ppl import distributions
from ...ppl.context import Context
from ...ppl.errors import ProgramError
from ...ppl.estimated import EstimatedDistribution
from ...ppl.generative import PLAIN, GenerativeFunction, Request, likelihood
from ...ppl.partial import Partial, as_given, prune, total, walk, where_leading
from ...ppl.probe import FINITE_SUPPORT
from ...ppl.program import Program
from ...ppl.selection import Selection
from ...ppl.target import Target
from ...ppl.trace import Trace
from .transition import all_equal, movable, where_happened


class _Free(eqx.Module):
    """In place of a site's value: its coordinates in R^n, and the value where it is not moved.

    `moved` None: everywhere.
    """

    value: Array
    coordinates: Array
    moved: Array | None


class _Coordinates(eqx.Module):
    """In place of a site's finite support: its value mapped to R^n."""

    coordinates: Array


class _UnboundedContext(Context):
    """Takes the values of moved sites from their coordinates; reports the coordinates of all."""

    def sample(self, name, distribution):
        if isinstance(distribution, EstimatedDistribution):
            raise ProgramError(
                f"the density at {self._at(name)} is estimated (marginal or normalize), but "
                "kernels that use gradients or coordinates need it exactly: use MH(selection)"
            )
        value = super().sample(name, distribution)
        if self._request.probe is not None:
            self._reports[name] = self._inverse(name, distribution, value)
        return value

    def call(self, name, program, *args):
        return super().call(name, unbounded(program), *args)

    def _exact(self, name, key, distribution, given):
        free = None if given is None else given.value
        if not isinstance(free, _Free):
            return super()._exact(name, key, distribution, given)
        value, log_volume = _forward(distribution, free.coordinates)
        value = value.astype(free.value.dtype)
        if free.moved is not None:
            value = where_leading(free.moved, value, free.value)
            log_volume = jnp.where(free.moved, log_volume, jnp.zeros_like(log_volume))
        return value, distributions.log_density(distribution, value, check=True) + log_volume

    def _inverse(self, name, distribution, value):
        if not jnp.issubdtype(value.dtype, jnp.inexact):
            return None
        try:
            return _Coordinates(_back(distribution, value))
        except NotImplementedError as error:
            raise ProgramError(
                f"NumPyro has no map from R^n to the support of {self._at(name)}, "
                f"{distribution.support}: leave the site out and move it by Metropolis or MH"
            ) from error


@distributions.third_party
def _forward(distribution: Any, coordinates: Array) -> tuple[Array, Array]:
    bijection: Any = biject_to(distribution.support)
    value = bijection(coordinates)
    return value, jnp.sum(bijection.log_abs_det_jacobian(coordinates, value))


@distributions.third_party
def _back(distribution: Any, value: Array) -> Array:
    bijection: Any = biject_to(distribution.support)
    return bijection.inv(value)


class _Unbounded(GenerativeFunction):
    """A program run by `_UnboundedContext`."""

    program: Program

    def run(self, key, given, args, request=PLAIN):
        context = _UnboundedContext(key, given, request)
        return context.finish(jax.tree.map(_strong, self.program(context, *args)))


def _strong(x):
    x = jnp.asarray(x)
    return jax.lax.convert_element_type(x, x.dtype)


def unbounded(model: Any) -> Any:
    """The model with each of its programs run by a context that knows coordinates."""

    def replace(x):
        return _Unbounded(x) if isinstance(x, Program) else x

    return jax.tree.map(replace, model, is_leaf=lambda x: isinstance(x, Program))


class View(eqx.Module):
    """A target's density as a function of a vector: coordinates of the continuous sites moved.

    Coordinates of instances that do not happen, or are not moved, are standard normal dummies. What
    happens is held fixed: the density is 0 where other sites would happen.
    """

    target: Target
    trace: Trace
    active: Any
    moved: Any
    position: Float[Array, " d"]
    unravel: Callable = eqx.field(static=True)
    steps: Int[Array, ""] | None

    @staticmethod
    def of(
        who: str,
        key: PRNGKeyArray,
        target: Target,
        trace: Trace,
        selection: Selection,
        steps: Int[Array, ""] | None,
    ) -> "View":
        """The view at a trace. A discrete site is an error where the selection names it."""
        masks = movable(who, target, trace, selection)
        model = unbounded(target.state_space())
        request = Request(complete=True, probe=FINITE_SUPPORT)
        out = model.run_to(None, target.joined(trace.choices), target.args, steps, request)
        _check(who, masks, out.reports, selection)

        def moved(_, log_prob, mask, active, support):
            if mask is False or not isinstance(support, _Coordinates):
                return None
            if active is None:  # always happens: `mask` may be known to be True
                return mask
            return active if mask is True else active & mask

        def coordinates(path, log_prob, moved, support):
            if moved is None:
                return None
            x = support.coordinates
            if moved is True:
                return x
            dummy = jax.random.normal(jax.random.fold_in(key, len(names)), x.shape, x.dtype)
            names.append(path)
            return where_leading(moved, x, dummy)

        names: list = []
        moves = walk(moved, trace.log_probs, masks, out.active, out.reports)
        start = prune(walk(coordinates, trace.log_probs, moves, out.reports))
        position, unravel = ravel_pytree(start)
        return View(target, trace, out.active, moves, position, unravel, steps)

    def log_density(self, position: Float[Array, " d"]) -> Float[Array, ""]:
        """Log density with respect to the coordinates, nats; NaN counts as -inf."""
        out, coordinates = self._run(position)
        fixed = as_given(self.target.constraints)
        log_p = self.target.raised(total(out.log_probs) + out.log_weight, likelihood(out, fixed))
        same = all_equal(self.trace.log_probs, out.active, self.active)
        log_p = log_p + self._dummies(coordinates)
        return jnp.where(same & ~jnp.isnan(log_p), log_p, -jnp.inf)

    def choices(self, position: Float[Array, " d"]) -> Any:
        """The choices at a position."""
        return self._run(position)[0].choices

    def _run(self, position):
        coordinates = self.unravel(position)

        def leaf(_, log_prob, given, moved, coordinates):
            if moved is None:
                return given
            return Partial(_Free(given.value, coordinates, None if moved is True else moved))

        joined = self.target.joined(self.trace.choices)
        given = walk(leaf, self.trace.log_probs, joined, self.moved, coordinates)
        model, request = unbounded(self.target.state_space()), Request(complete=True)
        return model.run_to(None, given, self.target.args, self.steps, request), coordinates

    def _dummies(self, coordinates):
        terms = [jnp.zeros(())]

        def leaf(_, log_prob, moved, x):
            if moved is not None and moved is not True:
                dummy = ~where_happened(moved, x)
                terms.append(-0.5 * jnp.sum(jnp.where(dummy, x, jnp.zeros_like(x)) ** 2))

        walk(leaf, self.trace.log_probs, self.moved, coordinates)
        return sum(t.astype(terms[0].dtype) for t in terms)


def _check(who: str, masks: Any, supports: Any, selection: Selection) -> None:
    """Raise if a site named is discrete, or none of the sites is continuous."""
    named, continuous, discrete = selection.addresses(), [], []

    def leaf(path, mask, support):
        if mask is False:
            return
        name = "/".join(path)
        if isinstance(support, _Coordinates):
            continuous.append(name)
            return
        discrete.append(name)
        if path in named:
            raise ProgramError(
                f"{who} moves continuous sites, but {name!r} is discrete: use Gibbs or MH for it "
                f"(Sequence([{who}(...), Gibbs(...)]) does both), and leave it out of this "
                "selection"
            )

    walk(leaf, masks, supports)
    if not continuous:
        raise ProgramError(
            f"{who} moves continuous sites, but there is none in its selection; {discrete} are "
            "discrete or inside a generative function that is not a program: use Gibbs or MH"
        )
