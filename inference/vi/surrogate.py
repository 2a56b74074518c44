"""One number whose gradient is the estimate: the surrogate loss of an objective.

f + sum over sites of score (f - baseline) + sum over branches k of w_k (f_k - f), where only
scores, weights and the first f are differentiated. f_k is the objective run again with one site
instance set to value k: what precedes it is unchanged, since keys depend on names alone, and what
follows is drawn anew, so that its expectation is the conditional one given value and past.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .baselines import Baseline, Learned, LeaveOneOut, Running
from .branches import branch_terms, branches_of
from .context import ObjectiveContext, frozen
from .probe import Plan
from .records import Level, Site, change_within, sites_of
from .strategies import Score, Strategy
from .strategies.score import Default


class Sample(eqx.Module):
    """One run: the objective, its surrogate, and the score that waits for the other samples."""

    value: Float[Array, "..."]
    surrogate: Float[Array, "..."]
    score: Float[Array, "..."] | None


def run_once(
    objective: Callable, plan: Plan, default: Baseline | None, key: PRNGKeyArray, args: tuple
) -> Sample:
    """One run, and the runs that its strategies ask for; args: the parameters and the rest."""
    ctx = ObjectiveContext(key, plan)
    value = jnp.asarray(objective(ctx, *args))
    if value.shape or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(
            f"an objective is one real number, got {value.dtype}{list(value.shape)}: return its "
            "sum or mean"
        )
    sites = sites_of(ctx.records)
    plan.check_used([(site.address, len(site.levels)) for site in sites])
    fixed = frozen((objective, plan, args, ctx.records))

    def again(change) -> Array:
        objective, plan, args, base = fixed
        rerun = ObjectiveContext(
            key, plan, change=change, base=base, record=False, chosen=ctx.chosen
        )
        return jax.lax.stop_gradient(jnp.asarray(objective(rerun, *args)))

    def strategy(site: Site) -> Strategy:
        if site.address in ctx.chosen:
            return ctx.chosen[site.address]
        found, _ = plan.find(site.address, len(site.levels))  # what `ctx.score` was told
        return found if isinstance(found, Score) else Score()

    drawn = jax.lax.stop_gradient(value)
    advantages = _Advantages(drawn, default, args, again)
    terms, waiting = [], []
    groups: dict[tuple[Level, ...], list] = {}
    for site in sites:
        if site.report is not None and site.report.score is not None:
            term, waits = advantages.term(site, strategy(site))
            (waiting if waits else terms).append(term)
        if site.report is not None and site.report.values is not None:
            groups.setdefault(site.levels, []).append(branches_of(key, site, strategy(site)))
    for levels, group in groups.items():
        terms += branch_terms(levels, group, drawn, again)
    surrogate = value
    for term in terms + advantages.fits():
        surrogate = surrogate + term - jax.lax.stop_gradient(term)
    return Sample(value, surrogate, sum(waiting[1:], waiting[0]) if waiting else None)


class _Advantages:
    """The objective less the baselines that the scores of a run are multiplied with."""

    def __init__(
        self, drawn: Array, default: Baseline | None, args: tuple, again: Callable[[Any], Array]
    ):
        self.drawn, self.default, self.args, self.again = drawn, default, args, again
        self._left_out: dict[tuple[Level, ...], Array] = {}
        self._learned: list[tuple[Learned, Array]] = []

    def term(self, site: Site, strategy: Strategy) -> tuple[Array, bool]:
        """Score times advantage; or the score alone, where the baseline is the other samples."""
        assert site.report is not None and site.report.score is not None
        score = jnp.where(site.active, site.report.score, jnp.zeros_like(site.report.score))
        baseline = getattr(strategy, "baseline", None)
        baseline = self.default if isinstance(baseline, Default) else baseline
        levels = _up_to_many(site.levels)
        if isinstance(baseline, LeaveOneOut) and not levels:
            return jnp.sum(score), True
        if isinstance(baseline, LeaveOneOut):
            score = jnp.sum(score.reshape(*site.runs, -1), axis=-1)
            return jnp.sum(score * (self.drawn - self.left_out(levels, site))), False
        if baseline is None:
            level = jnp.zeros_like(self.drawn)
        elif isinstance(baseline, Running):
            level = baseline.mean.astype(self.drawn.dtype)
        elif isinstance(baseline, Learned):
            level = self.learned(baseline)
        else:
            raise TypeError(
                f"the baseline of {'/'.join(site.address)!r} is a {type(baseline).__name__}: give "
                "None, vi.Running(), vi.Learned(fn) or vi.LeaveOneOut()"
            )
        return jnp.sum(score) * jax.lax.stop_gradient(self.drawn - level), False

    def learned(self, baseline: Learned) -> Array:
        """The value of a learned baseline, one for all the sites that have it."""
        for other, level in self._learned:
            if other is baseline:
                return level
        self._learned.append((baseline, baseline(*self.args)))
        return self._learned[-1][1]

    def fits(self) -> list[Array]:
        """What fits the learned baselines to the objective."""
        return [-0.5 * (self.drawn - level) ** 2 for _, level in self._learned]

    def left_out(self, levels: tuple[Level, ...], site: Site) -> Array:
        """The objective with each run's result replaced by the mean of the others', [*runs]."""
        if site.runs[-1] < 2:
            raise ValueError(
                f"site {'/'.join(site.address)!r} has a leave-one-out baseline, but "
                f"{levels[-1][0]!r} is one run: use n of at least 2, or vi.Running()"
            )
        if levels not in self._left_out:
            axes = jnp.meshgrid(*map(jnp.arange, site.runs), indexing="ij")
            index = jnp.stack(axes, axis=-1).reshape(-1, len(site.runs))
            values = jax.vmap(lambda i: self.again(change_within(levels, i, None)))(index)
            # Where the others are all impossible there is nothing to learn from them.
            values = jnp.where(jnp.isfinite(values), values, jnp.zeros_like(values))
            self._left_out[levels] = values.reshape(site.runs)
        return self._left_out[levels]


def _up_to_many(levels: tuple[Level, ...]) -> tuple[Level, ...]:
    """The levels up to the innermost `many`, () if there is none."""
    last = max((i for i, (_, n) in enumerate(levels) if n is not None), default=-1)
    return levels[: last + 1]
