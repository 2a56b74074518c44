"""The laws that the six operations of a generative function have among themselves."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PRNGKeyArray, PyTree

from ..enumeration import enumerate
from ..generative import GenerativeFunction
from ..partial import Choices, Partial, prune, total, walk
from ..selection import Selection, select
from ..target import Target
from ..trace import Trace
from .generate import Generate
from .invariance import moving
from .proper_weighting import weighting
from .result import LawResult, decide, roundings
from .statistics import batches

TRACES = 2**11

ADVICE = (
    "An operation disagrees with the others. Look for a site that is scored but not recorded, a "
    "weight that depends on which sites were given, or choices that are not zero where nothing "
    "happened."
)


class _Identities(eqx.Module):
    """Per law a pair (difference, size of the terms), for one random trace."""

    program: GenerativeFunction
    args: tuple
    selection: Selection

    def __call__(self, key: PRNGKeyArray) -> dict:
        f, args, sel = self.program, self.args, self.selection
        keys = jax.random.split(key, 5)
        both = jax.vmap(lambda k: f.simulate(k, *args))(jax.random.split(keys[0]))
        trace, other = (jax.tree.map(lambda x, i=i: x[i], both) for i in range(2))
        parts = f.project(trace, sel, *args) + f.project(trace, ~sel, *args)
        whole, log_w = f.generate(keys[1], trace.choices, *args)
        still, none = f.regenerate(keys[2], trace, select(), *args)
        out = {
            "project(sel) + project(~sel) = score": _pair(parts, trace.score),
            "generate with every choice given: weight = assess": _pair(log_w, _log_density(trace)),
            "generate with every choice given: choices": _differ(whole.choices, trace.choices),
            "regenerate nothing: weight 0": _pair(
                # For a trace of density zero the ratio is zero over zero.
                jnp.where(jnp.isfinite(_log_density(trace)), none, jnp.zeros_like(none)),
                jnp.zeros_like(none),
                _log_density(trace),
            ),
            "regenerate nothing: choices": _differ(still.choices, trace.choices),
        }
        masks = sel.masks(trace.log_probs)
        fresh, log_w = f.regenerate(keys[3], trace, sel, *args)
        # Newly drawn: selected, or not there before.
        drawn = total(fresh.log_probs, _either(masks, trace.active, fresh.log_probs))
        undrawn = total(trace.log_probs, _either(masks, fresh.active, trace.log_probs))
        ratio = _log_density(fresh) - _log_density(trace) - drawn + undrawn
        out["regenerate: weight = log ratio"] = _pair(log_w, ratio, drawn)
        new, log_w, old = f.update(keys[4], trace, _part(other.choices, masks), *args)
        back, log_w_back, _ = f.update(keys[4], new, old, *args)
        drawn = total(new.log_probs, _fresh(masks, trace.active, new.log_probs))
        gain = _log_density(new) - _log_density(trace)
        out["update: weight = gain - drawn"] = _pair(log_w, gain - drawn, drawn)
        possible = jnp.isfinite(_log_density(new))
        out["update and its reverse: weights"] = _pair(
            *(jnp.where(possible, x, jnp.zeros_like(x)) for x in (log_w_back + drawn, -log_w))
        )
        out["update and its reverse: choices"] = _differ(back.choices, trace.choices)
        traces = {"simulate": trace, "regenerate": fresh, "update": new}
        stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *(t.choices for t in traces.values()))
        densities = jax.vmap(lambda c: f.assess(c, *args)[0])(stacked)
        for (name, t), density in zip(traces.items(), densities, strict=True):
            out[f"{name}: assess = score + log_weight"] = _pair(density, _log_density(t))
        return out


def _log_density(trace: Trace):
    return trace.score + trace.log_weight


def _pair(a: Array, b: Array, scale: ArrayLike = 0.0) -> tuple[Array, Array]:
    """A - b where both are finite; inf where only one is."""
    same = (a == b) | (jnp.isnan(a) & jnp.isnan(b))
    size = jnp.abs(b) + jnp.abs(scale)
    zero = jnp.zeros_like(a)
    return jnp.where(same, zero, a - b), jnp.where(jnp.isfinite(size), size, zero)


def _differ(a: Choices, b: Choices):
    """Infinite if any choice differs."""
    same = jnp.ones((), bool)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        same = same & jnp.all(x == y)
    return jnp.where(same, 0.0, jnp.inf), jnp.zeros(())


def _either(masks: Any, active: Any, log_probs: Any) -> Any:
    """Selected or not active."""

    def leaf(_, lp, selected, active):
        selected = jnp.broadcast_to(jnp.asarray(selected), jnp.shape(lp))
        return selected if active is None else selected | ~active

    return walk(leaf, log_probs, masks, active)


def _fresh(given: Any, active: Any, log_probs: Any) -> Any:
    """Neither given nor active."""

    def leaf(_, lp, given, active):
        given = jnp.broadcast_to(jnp.asarray(given), jnp.shape(lp))
        return jnp.zeros_like(given) if active is None else ~given & ~active

    return walk(leaf, log_probs, given, active)


def _part(choices: Choices, masks: Any) -> Choices:
    """The selected choices, to be given."""

    def leaf(_, mask, value):
        if isinstance(mask, bool):
            return value if mask else None
        return Partial(value, mask)

    return prune(walk(leaf, masks, choices))


class _Regenerate(eqx.Module):
    """Metropolis-Hastings by `regenerate`, on choices."""

    target: Target
    selection: Selection

    def __call__(self, key: PRNGKeyArray, choices: Choices) -> Choices:
        key_run, key_draw, key_accept = jax.random.split(key, 3)
        model, args = self.target.model, self.target.args
        trace = model.run(key_run, self.target.joined(choices), args).trace()
        new, log_w = model.regenerate(key_draw, trace, self.selection, *args)
        accept = jnp.log1p(-jax.random.uniform(key_accept, dtype=log_w.dtype)) < log_w
        return jax.tree.map(lambda a, b: jnp.where(accept, a, b), new.choices, choices)


def interface(
    key: PRNGKeyArray,
    program: GenerativeFunction,
    *args: PyTree,
    selection: Selection | None = None,
    enumerable: bool = True,
    runs: int = 2**14,
) -> LawResult:
    """Check a program's six operations against each other, and against enumeration.

    Laws, on random traces, up to rounding: assess(simulate.choices) = score + log_weight;
    project(sel) + project(~sel) = score; generate with every choice given has weight assess;
    regenerate of nothing has weight 0 and changes nothing; the weight of `regenerate` is the log
    density ratio less the forward over the reverse proposal density; the weight of `update` is the
    gain in log density less that of what was drawn, and its reverse gives the old choices and the
    negative weight. By enumeration (`enumerable=False` leaves these two out): `generate` without
    constraints is properly weighted, and regenerate's weight as acceptance ratio leaves the
    program's normalised density invariant. `selection` (the first site by default) is what is
    updated and regenerated.
    """
    target = Target(program, args)
    shape = jax.eval_shape(lambda k: program.simulate(k, *args).log_probs, jax.random.key(0))
    selection = select(*list(shape)[:1]) if selection is None else selection
    one = _Identities(program, args, selection)
    measures = {}
    if enumerable:
        posterior = enumerate(target)
        kernel = _Regenerate(target, selection)
        measures["generate"] = weighting(Generate(), target, posterior), 1
        measures["regenerate"] = moving(kernel, posterior), 8

    def measure(key, runs):
        z, untested = {}, []
        for pairs, count in batches(one, jax.random.fold_in(key, 0), TRACES):
            for law, (difference, size) in pairs.items():
                z[law] = roundings(np.asarray(difference)[:count], np.asarray(size)[:count])
        for name, (part, share) in measures.items():
            scores, rare = part(jax.random.fold_in(key, share), share * runs)
            z |= {f"{name}: {what}": score for what, score in scores.items()}
            untested += [f"{name}: {what}" for what in rare]
        return z, untested

    return decide("interface", measure, key, runs, ADVICE)
