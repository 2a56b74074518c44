"""One number whose gradient is the estimate: the surrogate loss of an objective.

f(drawn) + sum over sites of score (f - baseline) + sum over branches k of w_k (f_k - f), where only
scores, weights and the first f are differentiated. f_k is the objective run again with one site
instance set to value k: what precedes it is unchanged, since keys depend on names alone, and what
follows is drawn anew, so that its expectation is the conditional one given value and past.
"""

import zlib
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ...ppl.partial import Partial, walk
from .baselines import Baseline, Learned, LeaveOneOut, Running
from .context import ObjectiveContext
from .probe import Path, Plan
from .records import AtDraws, Called, Drawn, Inside, LeftOut, Many, Records, Scored, Within
from .strategies import Report, Score, Strategy
from .strategies.score import Default

Level = tuple[str, int | None]
"""A name on the way to a site, and the number of runs if it is a `many`."""


class Site(eqx.Module):
    """A site of the base run: leaves have the axes of the `many`s, then those of the guide."""

    levels: tuple[Level, ...] = eqx.field(static=True)
    path: Path = eqx.field(static=True)
    log_prob: Array
    active: Array
    report: Report | None

    @property
    def full(self) -> Path:
        """The whole address."""
        return (*(name for name, _ in self.levels), *self.path)

    @property
    def runs(self) -> tuple[int, ...]:
        """Numbers of runs of the `many`s around it."""
        return tuple(n for _, n in self.levels if n is not None)


def sites_of(records: Records, levels: tuple[Level, ...] = ()) -> list[Site]:
    """All sites of the records of a run."""
    sites: list[Site] = []
    for name, record in records.items():
        if isinstance(record, (Many, Called)):
            n = None
            if isinstance(record, Many):
                axis = sum(1 for _, m in levels if m is not None)
                n = jax.tree.leaves(record.values)[0].shape[axis]
            sites += sites_of(record.inside, (*levels, (name, n)))
        elif isinstance(record, Scored):
            active = jnp.ones(record.log_prob.shape, bool)
            report = Report(score=record.log_prob)
            sites.append(Site(levels, (name,), record.log_prob, active, report))
        elif isinstance(record, Drawn):
            sites += _drawn(name, record, levels)
    return sites


def _drawn(name: str, record: Drawn, levels: tuple[Level, ...]) -> list[Site]:
    sites: list[Site] = []

    def leaf(path, log_prob, active, report):
        active = jnp.ones(log_prob.shape, bool) if active is None else active
        path = path if path == (name,) else (name, *path)  # of a distribution, or of a program
        sites.append(Site(levels, path, log_prob, active, report))

    walk(leaf, record.log_probs, record.active, record.reports)
    return sites


class Sample(eqx.Module):
    """One run's objective, its surrogate, and the score that waits for the other samples."""

    value: Float[Array, ""]
    surrogate: Float[Array, ""]
    score: Float[Array, ""] | None


def run_once(
    objective: Callable,
    plan: Plan,
    default: Baseline | None,
    key: PRNGKeyArray,
    args: tuple,
) -> Sample:
    """One run, and the runs that its strategies ask for. args: the parameters and the rest."""
    ctx = ObjectiveContext(key, plan)
    value = jnp.asarray(objective(ctx, *args))
    if value.shape or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(
            f"an objective is one real number, got {value.dtype}{list(value.shape)}: return its "
            "sum or mean"
        )
    sites = sites_of(ctx._records)
    plan.check_used([(site.full, len(site.levels)) for site in sites])
    fixed = _stopped((objective, args, ctx._records, plan))

    def again(override) -> Array:
        objective, args, base, plan = fixed
        rerun = ObjectiveContext(key, plan, (), override, base, record=False)
        return jax.lax.stop_gradient(jnp.asarray(objective(rerun, *args)))

    run = _Run(plan, default, key, args, value, again)
    terms, waiting = run.scores(sites)
    terms += run.branches(sites)
    surrogate = value
    for term in terms:
        surrogate = surrogate + _gradient_only(term)
    return Sample(value, surrogate, waiting)


def _gradient_only(term: Array) -> Array:
    return term - jax.lax.stop_gradient(term)


def _stopped(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jax.lax.stop_gradient(x) if eqx.is_inexact_array(x) else x, tree)


class _Run:
    """What is known of the base run when the terms are made."""

    def __init__(self, plan, default, key, args, value, again):
        self.plan, self.default, self.key, self.args = plan, default, key, args
        self.value, self.again = value, again
        self._left_out: dict[tuple[Level, ...], Array] = {}

    def strategy(self, site: Site) -> Strategy:
        given, _ = self.plan.find(site.full, len(site.levels))
        return Score() if given is None else given

    def scores(self, sites: list[Site]) -> tuple[list[Array], Array | None]:
        """Terms of all scores, and the sum of those whose baseline is the other samples."""
        terms, waiting = [], []
        fitted: dict[int, Array] = {}
        for site in sites:
            if site.report is None or site.report.score is None:
                continue
            score = jnp.where(site.active, site.report.score, jnp.zeros_like(site.report.score))
            baseline = getattr(self.strategy(site), "baseline", None)
            baseline = self.default if isinstance(baseline, Default) else baseline
            levels = _up_to_many(site.levels)
            if isinstance(baseline, LeaveOneOut) and not levels:
                waiting.append(jnp.sum(score))
                continue
            if isinstance(baseline, LeaveOneOut):
                score = jnp.sum(score.reshape(*site.runs, -1), axis=-1)
                level = self.left_out(levels, site)
            elif isinstance(baseline, Running):
                level = baseline.mean.astype(self.value.dtype)
            elif isinstance(baseline, Learned):
                level = baseline(*self.args)
                fitted[id(baseline)] = level
            elif baseline is None:
                level = jnp.zeros(())
            else:
                raise TypeError(f"{type(baseline).__name__} is no baseline of vi")
            advantage = jax.lax.stop_gradient(self.value - level)
            terms.append(jnp.sum(score * advantage))
        for level in fitted.values():
            terms.append(-0.5 * (jax.lax.stop_gradient(self.value) - level) ** 2)
        return terms, sum(waiting[1:], waiting[0]) if waiting else None

    def left_out(self, levels: tuple[Level, ...], site: Site) -> Array:
        """The objective with each run's result replaced by the mean of the others', [*runs]."""
        if site.runs[-1] < 2:
            raise ValueError(
                f"site {'/'.join(site.full)!r} has a leave-one-out baseline, but "
                f"{levels[-1][0]!r} is one run: use n of at least 2, or vi.Running()"
            )
        if levels not in self._left_out:

            def one(index):
                return self.again(_nested(levels, index, None))

            values = jax.vmap(one)(_indices(site.runs)).reshape(site.runs)
            # Where the others are all impossible there is nothing to learn from them.
            self._left_out[levels] = jnp.where(jnp.isfinite(values), values, 0.0)
        return self._left_out[levels]

    def branches(self, sites: list[Site]) -> list[Array]:
        """Terms of all branches: one batched run again for each place in the objective."""
        groups: dict[tuple[Level, ...], list[Site]] = {}
        for site in sites:
            if site.report is not None and site.report.values is not None:
                groups.setdefault(site.levels, []).append(site)
        return [term for levels, group in groups.items() for term in self._group(levels, group)]

    def _group(self, levels: tuple[Level, ...], group: list[Site]) -> list[Array]:
        parts = [self._chosen(site) for site in group]
        sizes = [weights.size for _, weights, _, _ in parts]
        ends = np.cumsum([0, *sizes])
        total = int(ends[-1])
        which = np.repeat(np.arange(len(group)), sizes)
        runs = group[0].runs
        # [total, number of manys]: which run, of each many, a branch is in.
        index = jnp.concatenate(
            [
                jnp.repeat(_unravel(chosen, site.log_prob.shape)[:, : len(runs)], k, axis=0)
                for site, (chosen, k) in zip(
                    group, [(c, w.shape[1]) for c, w, _, _ in parts], strict=True
                )
            ]
        )
        given = []
        for s, (site, (chosen, weights, values, _)) in enumerate(zip(group, parts, strict=True)):
            axes = site.log_prob.shape[len(runs) :]
            own = jnp.prod(jnp.asarray(axes, int)) if axes else jnp.ones((), int)
            inner = jnp.repeat(chosen % own, weights.shape[1])
            at = jnp.zeros(total, int).at[ends[s] : ends[s + 1]].set(inner)
            full = jnp.zeros((total, *values.shape[2:]), values.dtype)
            full = full.at[ends[s] : ends[s + 1]].set(values.reshape(-1, *values.shape[2:]))
            given.append((at, full, axes))

        def one(b, which, index):
            draws: dict[str, Any] = {}
            for s, (site, (at, full, axes)) in enumerate(zip(group, given, strict=True)):
                size = int(np.prod(axes, dtype=int))
                mask = ((jnp.arange(size) == at[b]) & (which == s)).reshape(axes)
                value = jnp.broadcast_to(full[b], (*axes, *full.shape[1:]))
                _put(draws, site.path, Partial(value, mask))
            return self.again(_nested(levels, index, AtDraws(draws)))

        results = jax.vmap(one)(jnp.arange(total), jnp.asarray(which), index)
        drawn, terms = jax.lax.stop_gradient(self.value), []
        for s, (site, (_, weights, _, share)) in enumerate(zip(group, parts, strict=True)):
            branches = results[ends[s] : ends[s + 1]].reshape(weights.shape)
            terms.append(jnp.sum(self.strategy(site).term(weights, drawn, branches)) * share)
        return terms

    def _chosen(self, site: Site) -> tuple[Array, Array, Array, float]:
        """Instances [m] whose branches are run, weights [m, K], values [m, K, ...], n / m."""
        report, shape = site.report, site.log_prob.shape
        assert report is not None and report.values is not None and report.weights is not None
        n, axes = int(np.prod(shape, dtype=int)), len(shape)
        weights = report.weights.reshape(n, -1)
        weights = jnp.where(site.active.reshape(n, 1), weights, jnp.zeros_like(weights))
        values = report.values.reshape(n, *report.values.shape[axes:])
        m = getattr(self.strategy(site), "instances", None)
        if m is None or m >= n:
            return jnp.arange(n), weights, values, 1.0
        key = jax.random.fold_in(
            self.key, zlib.crc32(("instances of " + "/".join(site.full)).encode())
        )
        chosen = jax.random.choice(key, n, (m,), replace=False)
        return chosen, weights[chosen], values[chosen], n / m


def _up_to_many(levels: tuple[Level, ...]) -> tuple[Level, ...]:
    """The levels up to the innermost `many`, () if there is none."""
    last = max((i for i, (_, n) in enumerate(levels) if n is not None), default=-1)
    return levels[: last + 1]


def _indices(runs: tuple[int, ...]) -> Array:
    """All multi-indices, [product, axes]."""
    return jnp.stack(jnp.meshgrid(*map(jnp.arange, runs), indexing="ij"), -1).reshape(-1, len(runs))


def _unravel(flat: Array, shape: tuple[int, ...]) -> Array:
    if not shape:
        return jnp.zeros((flat.shape[0], 0), flat.dtype)
    return jnp.stack(jnp.unravel_index(flat, shape), axis=-1)


def _put(tree: dict, path: Path, leaf: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = leaf


def _nested(levels: tuple[Level, ...], index: Array, change: Any) -> Any:
    """A change, inside the levels around it; None replaces the innermost many's result."""
    if not levels:
        return change
    (name, n), *rest = levels
    if n is None:
        return Within(name, _nested(tuple(rest), index, change))
    if not rest and change is None:
        return LeftOut(name, index[0])
    return Inside(name, index[0], _nested(tuple(rest), index[1:], change))
