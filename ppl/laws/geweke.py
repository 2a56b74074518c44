"""The joint-distribution test of Geweke (2004), "Getting it right", section 3."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ..errors import ProgramError
from ..generative import GenerativeFunction, Request
from ..nested import split_choices
from ..partial import Choices, spelled, walk
from ..program import as_program
from ..selection import Selection
from ..target import Target
from ..trace import Trace
from .result import LawResult, decide, standardized
from .statistics import batches, moments

PROJECTIONS = 4

ADVICE = (
    "Parameters and data do not keep their joint law when the kernel moves the parameters. Look "
    "for a proposal density left out of the acceptance ratio, a Jacobian, a ratio upside down, or "
    "data that the kernel does not read from the target's constraints."
)


class _Sweeps(eqx.Module):
    """Test functions after some sweeps from a joint draw, minus those of the draw."""

    kernel: Callable
    model: GenerativeFunction
    args: tuple
    data: Selection
    functions: Callable
    sweeps: int = eqx.field(static=True)

    def __call__(self, key: PRNGKeyArray) -> Float[Array, " f"]:
        start = _written(self.model.simulate(jax.random.fold_in(key, 0), *self.args))

        def sweep(carry, i):
            key_kernel, key_data, key_accept = jax.random.split(jax.random.fold_in(key, i + 1), 3)
            trace, _ = carry
            observed, _ = split_choices(self.data, trace.log_probs, trace.choices)
            target = Target(self.model, self.args, observed)
            moved = _written(self.kernel(key_kernel, target, trace))
            # Data from their law given the rest; where they feed back, a move that keeps it.
            redrawn, log_w = self.model.regenerate(key_data, moved, self.data, *self.args)
            log_u = jnp.log1p(-jax.random.uniform(key_accept, dtype=log_w.dtype))
            new, old = (_written(redrawn), moved)
            trace = jax.tree.map(lambda a, b: jnp.where(log_u < log_w, a, b), new, old)
            return (trace, moved.choices), None

        (_, moved), _ = jax.lax.scan(sweep, (start, start.choices), jnp.arange(self.sweeps))
        # Before the last data are redrawn: redrawing would hide a kernel that ignores them.
        return self.functions(moved) - self.functions(start.choices)


def _written(trace: Trace) -> Trace:
    active = spelled(trace.active, trace.log_probs)
    return eqx.tree_at(lambda t: t.active, trace, active, is_leaf=lambda x: x is trace.active)


class _Functions(eqx.Module):
    """First and second moments of every entry, and cosines of random projections."""

    projections: Float[Array, "k d"] | None
    custom: tuple[Callable, ...] = eqx.field(static=True)

    def __call__(self, choices: Choices) -> Float[Array, " f"]:
        if self.projections is None:
            values = [jax.tree.leaves(f(choices)) for f in self.custom]
            return jnp.concatenate(
                [jnp.ravel(x).astype(float) for leaves in values for x in leaves]
            )
        x = jnp.concatenate([jnp.ravel(v).astype(float) for v in jax.tree.leaves(choices)])
        return jnp.concatenate([x, x * x, jnp.cos(self.projections @ x)])


def geweke(
    key: PRNGKeyArray,
    kernel: Callable,
    model: Any,
    data: Selection,
    *,
    args: tuple = (),
    functions: Mapping[str, Callable] | None = None,
    runs: int = 2**13,
    sweeps: int = 4,
) -> LawResult:
    """Check a kernel for every data set that the model can make, without knowing any posterior.

    Law: draw parameters and data together from the model; then `sweeps` times let the kernel move
    the parameters given the data, with the data drawn anew given the parameters in between; the
    joint law is what it was. `runs` independent starts give z-scores of the mean change of each
    function. The data are sampled sites of the model, named by `data` (whole sites); the kernel is
    given them as the target's constraints. Being joint, the test needs no closed form and works for
    any model, continuous ones included; being short, it sees what a few sweeps change.

    Args:
        key: a key.
        kernel: `(key, target, trace) -> trace`, such as every `inference.mcmc` kernel.
        model: a program or `StateSpace` without `observe` and `factor`.
        data: the sites that are data; they have to happen in every trace.
        args: the model's arguments.
        functions: by name `f(choices) -> array`, with a finite variance; by default each entry, its
            square, and cosines of random projections of all.
        runs: independent runs.
        sweeps: sweeps a run.
    """
    model = as_program(model)
    shape = _shape(model, data, args)
    if functions is None:
        names, size = _names(shape), sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shape))
        projections = np.random.default_rng(0).normal(size=(PROJECTIONS, size))
        f = _Functions(jnp.asarray(projections, float), ())
    else:
        f, names = _Functions(None, tuple(functions.values())), []
        for name, function in functions.items():
            leaves = jax.tree.leaves(jax.eval_shape(function, shape))
            n = sum(int(np.prod(x.shape)) for x in leaves)
            names += [name] if n == 1 else [f"{name}[{i}]" for i in range(n)]
    one = _Sweeps(kernel, model, args, data, f, sweeps)

    def measure(key, runs):
        mean, error, _ = moments(batches(one, key, runs))
        z = np.where(error > 0, standardized(mean, error), np.where(mean == 0, 0.0, np.inf))
        return dict(zip(names, z.tolist(), strict=True)), []

    return decide("Geweke's joint law", measure, key, runs, ADVICE)


def _shape(model: GenerativeFunction, data: Selection, args: tuple) -> Any:
    """The shapes of the choices; an error if the test does not apply."""

    def run(key):
        out = model.run(key, {}, args, Request(weightless=True))
        return out.choices, out.log_probs, out.active

    try:
        choices, log_probs, active = jax.eval_shape(run, jax.random.key(0))
    except ProgramError as error:
        raise ProgramError(
            "Geweke's test draws parameters and data together from the model, which has to be "
            f"normalised: make the data sampled sites and name them in `data` ({error})"
        ) from error
    may_miss: list[str] = []

    def site(path, wanted, active):
        if wanted is not False and active is not None:
            may_miss.append("/".join(path))

    masks = data.masks(jax.tree.map(lambda x: jnp.zeros(x.shape), log_probs))
    walk(site, masks, active)
    if may_miss:
        raise ProgramError(
            f"the data {may_miss} may not happen (a branch, or steps after an early end), so that "
            "their number is data too, which constraints do not hold: put the data where they "
            "always happen, or use laws.invariance"
        )
    return choices


def _names(choices: Any) -> list[str]:
    entries = []
    for path, x in jax.tree_util.tree_leaves_with_path(choices):
        site = "/".join(str(p.key) for p in path if hasattr(p, "key"))
        for index in np.ndindex(*x.shape):
            entries.append(f"{site}[{','.join(map(str, index))}]" if index else site)
    squares = [f"{name}^2" for name in entries]
    return entries + squares + [f"joint {i}" for i in range(PROJECTIONS)]
