"""What an objective speaks to: draws from guides, densities of targets, independent runs."""

import zlib
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray, PyTree

from ...ppl import distributions
from ...ppl.context import Context
from ...ppl.errors import ProgramError
from ...ppl.estimated import EstimatedDistribution
from ...ppl.generative import Request, likelihood
from ...ppl.keys import plain_key
from ...ppl.nested import Normalize, split_choices
from ...ppl.partial import as_given, overlay, total
from ...ppl.program import as_program
from ...ppl.target import Target, as_target
from ...ppl.tracing import trace_state
from ..particles import log_mean_exp
from . import nested
from .baselines import others
from .mismatch import explain
from .probe import EstimatesProbe, FixedProbe, Plan, StrategyProbe
from .records import (
    AtDraws,
    Called,
    Drawn,
    Inside,
    LeftOut,
    Many,
    Path,
    Records,
    Scored,
    Within,
)
from .strategies import Strategy


class ObjectiveContext:
    """Handed to an objective as its first argument; names are unique within an objective.

    It lives only while its objective runs. `run`: which of the runs of a `many` this is, else
    None. `records`, `chosen`: what the surrogate needs, the strategies of sites among it.
    """

    def __init__(
        self,
        key: PRNGKeyArray,
        plan: Plan,
        prefix: Path = (),
        change: Any = None,
        base: Records | None = None,
        record: bool = True,
        run: Int[ArrayLike, ""] | None = None,
        chosen: dict[Path, Strategy] | None = None,
    ):
        self._key, self._plan, self._prefix = key, plan, prefix
        self._change, self._base, self._record = change, base, record
        self.run, self.chosen = run, {} if chosen is None else chosen
        self._names: list[str] = []
        self.records: Records = {}
        self._entered = trace_state()

    def draw(
        self, name: str, guide: Any, *args: PyTree, frozen: bool = False
    ) -> tuple[PyTree, Float[Array, ""]]:
        """A draw x from a guide and its log density there, nats.

        `guide`: a generative function called with `args` (x is the dict of its choices), a NumPyro
        distribution, or an estimated one (`ppl.marginal`, `ppl.normalize`): then log w with E[1/w |
        x] = 1/q(x). Sites inside a `ppl.marginal` by importance sampling from its program can have
        strategies too. `frozen`: its law and x are taken as given, without gradients.
        """
        key = self._enter(name)
        given: Any = self._change.given.get(name) if isinstance(self._change, AtDraws) else None
        if isinstance(guide, Target):
            raise ProgramError(
                f"draw {self._at(name)} got a Target, which is not normalized: draw from "
                "ppl.normalize(target, algorithm)"
            )
        probe = None if frozen else self._probe()
        if isinstance(guide, Normalize) and not frozen:
            return self._picked(name, key, guide)
        if not frozen and self._plan.strategies is not None and nested.is_plain(guide):
            return self._integrated(name, key, given, guide)
        if isinstance(guide, (dist.Distribution, EstimatedDistribution)):
            context = Context(key, {} if given is None else {name: given}, Request(probe=probe))
            out = context.finish(context.sample(name, guide))
            x = out.retval
        else:
            request = Request(where=(name,), weightless=True, probe=probe)
            out = as_program(guide).run(key, given or {}, args, request)
            x = out.choices
        log_q = total(out.log_probs)
        if frozen:
            return jax.lax.stop_gradient((x, log_q))
        if self._record:
            self.records[name] = Drawn(out.log_probs, out.active, out.reports or {})
        return x, log_q

    def log_density(self, name: str, target: Any, x: PyTree) -> Float[Array, ""]:
        """Log density (of a `Target` unnormalized) at x, nats; of an estimated one an estimate.

        `target`: a `Target`, a generative function without args, a distribution. The sites of x
        have to be its free sites.
        """
        key = self._enter(name)
        probe = EstimatesProbe((*self._prefix, name))
        if isinstance(target, dist.Distribution):
            return distributions.log_density(target, jnp.asarray(x), check=True)
        if isinstance(target, EstimatedDistribution):
            if not isinstance(target, Normalize):
                nested.check_differentiable("/".join((*self._prefix, name)), target)
            return target.estimate_logpdf(plain_key(key), x)
        target = as_target(target)
        if not isinstance(x, dict):
            raise ProgramError(
                f"log_density {self._at(name)} needs a dict of choices, got {type(x).__name__}: "
                "give {site: value}"
            )
        relaxed = self._plan.allow_biased
        request = Request(complete=True, probe=probe, relaxed=relaxed)
        try:
            return target.log_density(x, key, request)
        except ProgramError as error:
            raise explain(self._at(name), target, x, error) from error

    def many(self, name: str, n: int, fn: Callable[..., PyTree], *args: PyTree) -> PyTree:
        """Results [n, ...] of n independent runs of a sub-objective `fn(ctx, *args)`.

        Leave-one-out baselines know of each run by itself.
        """
        key = self._enter(name)
        if n < 1 or int(n) != n:
            raise ProgramError(f"many {self._at(name)} needs a positive number of runs, got {n!r}")
        change, base = self._change, self._base

        def one(i, change, base, record):
            key_i = jax.random.fold_in(key, i)
            ctx = self._inner(name, key_i, change, base, record, i)
            out = jax.tree.map(jnp.asarray, fn(ctx, *args))
            return out, ctx.records

        mine = getattr(change, "name", None) == name
        known = base[name] if mine and base is not None else None
        if known is not None and isinstance(change, LeftOut):
            return others(known.values, change.index)
        if known is not None and isinstance(change, Inside):
            own = jax.tree.map(lambda x: x[change.index], known.inside)
            value, _ = one(change.index, change.change, own, False)
            return jax.tree.map(lambda xs, x: xs.at[change.index].set(x), known.values, value)
        values, records = jax.vmap(lambda i: one(i, None, None, self._record))(jnp.arange(n))
        if self._record:
            self.records[name] = Many(values, records)
        return values

    def each(self, name: str, fn: Callable[..., PyTree], xs: PyTree, *args: PyTree) -> PyTree:
        """Results [n, ...] of `fn(ctx, x, *args)` for each of the xs [n, ...]."""
        sizes = {jnp.shape(x)[0] if jnp.shape(x) else 0 for x in jax.tree.leaves(xs)}
        if len(sizes) != 1 or 0 in sizes:
            raise ProgramError(f"each {self._at(name)} needs xs with one leading axis: {sizes}")

        def at(ctx, *args):
            return fn(ctx, jax.tree.map(lambda x: x[ctx.run], xs), *args)

        return self.many(name, sizes.pop(), at, *args)

    def call(self, name: str, fn: Callable[..., PyTree], *args: PyTree) -> PyTree:
        """Run a sub-objective `fn(ctx, *args)`, its draws under `name`."""
        key = self._enter(name)
        mine = isinstance(self._change, Within) and self._change.name == name
        change = self._change.change if mine else None
        base = self._base[name].inside if mine and self._base is not None else None
        ctx = self._inner(name, key, change, base, self._record)
        out = fn(ctx, *args)
        if self._record:
            self.records[name] = Called(ctx.records)
        return out

    def score(self, name: str, log_prob: Float[ArrayLike, ""]) -> None:
        """Say that something was drawn by other means, with this log-probability, nats.

        It is treated as a site with the strategy `Score`.
        """
        self._enter(name)
        if self._record:
            log_prob = jnp.asarray(log_prob, float)
            self.records[name] = Scored(log_prob)

    def key(self, name: str) -> PRNGKeyArray:
        """A key, for what is drawn by other means: reparameterized, or told to `score`."""
        return plain_key(self._enter(name))

    def _picked(self, name, key, guide):
        """A particle of `normalize`, picked by weight: the pick is a draw with a score."""
        who = "/".join((*self._prefix, name))
        nested.check_algorithm(who, guide.algorithm)
        nested.check_draws(who, guide.target, guide.algorithm)
        key_run, key_pick = jax.random.split(plain_key(key))
        particles = guide.algorithm.run(key_run, guide.target)
        index = particles.pick(key_pick)
        if self._record:
            log_p = jax.nn.log_softmax(particles.log_weights)[index]
            self.records[name] = Scored(log_p)
        x = jax.tree.map(lambda leaf: leaf[index], particles.choices)
        return x, guide.target.log_density(x) - particles.log_evidence

    def _integrated(self, name, key, given, guide):
        """A draw of a marginal by its program, each site of which can have a strategy.

        The density is the mean over the rest as drawn, and over the rest drawn anew given x.
        """
        model, args = guide.target.model, guide.target.args
        request = Request(where=(name,), weightless=True, probe=self._probe())
        out = model.run(key, given or {}, args, request)
        if self._record:
            self.records[name] = Drawn(out.log_probs, out.active, out.reports or {})
        x, _ = split_choices(guide.selection, out.log_probs, out.choices)
        fixed = as_given(x)
        terms = likelihood(out, fixed)[None]

        def anew(ctx):
            key = ctx._enter(name)
            changed = ctx._change.given.get(name, {}) if isinstance(ctx._change, AtDraws) else {}
            probe = FixedProbe(ctx._plan, ctx._prefix, ctx._record, ctx.chosen, fixed)
            request = Request(where=(name,), weightless=True, probe=probe)
            out = model.run(key, overlay(changed, fixed), args, request)
            if ctx._record:
                ctx.records[name] = Drawn(out.log_probs, out.active, out.reports or {})
            return likelihood(out, fixed)

        if guide.algorithm.n_particles > 1:
            more = self.many(f"{name}, integrated", guide.algorithm.n_particles - 1, anew)
            terms = jnp.concatenate([terms, more])
        return x, log_mean_exp(terms)

    def _inner(self, name, key, change, base, record, run=None) -> "ObjectiveContext":
        prefix = (*self._prefix, name)
        return ObjectiveContext(key, self._plan, prefix, change, base, record, run, self.chosen)

    def _probe(self) -> StrategyProbe:
        return StrategyProbe(self._plan, self._prefix, self._record, self.chosen)

    def _at(self, name: str) -> str:
        return repr("/".join((*self._prefix, name)))

    def _enter(self, name: str) -> PRNGKeyArray:
        if name in self._names:
            raise ProgramError(
                f"{self._at(name)} appears twice in an objective. Give each its own name; for "
                "independent runs use ctx.many"
            )
        if trace_state() != self._entered:
            raise ProgramError(
                f"{self._at(name)} is inside a raw JAX transformation (vmap, scan, grad, ...): "
                "for independent runs use ctx.many; put scans and loops into the guide, as "
                "ppl.scan"
            )
        self._names.append(name)
        return jax.random.fold_in(self._key, zlib.crc32(name.encode()))


def frozen(tree: PyTree) -> PyTree:
    """A guide, target or other tree through whose arrays no gradient passes."""
    return jax.tree.map(lambda x: jax.lax.stop_gradient(x) if eqx.is_inexact_array(x) else x, tree)
