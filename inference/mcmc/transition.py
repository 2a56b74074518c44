"""What the kernels share: running a model at given choices, accepting, and saying what is wrong."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ...ppl.errors import ProgramError
from ...ppl.generative import Outcome, Request, given_masks, likelihood
from ...ppl.hot import drop_hot
from ...ppl.partial import Choices, as_given, spelled, walk
from ...ppl.selection import Selection
from ...ppl.target import Target
from ...ppl.trace import Trace
from .kernel import Chain

COMPLETE = Request(complete=True)


def written(trace: Trace) -> Trace:
    """The trace with activity written out as arrays."""
    active = spelled(trace.active, trace.log_probs)
    return eqx.tree_at(lambda t: t.active, trace, active, is_leaf=lambda x: x is trace.active)


def traced(out: Outcome) -> Trace:
    """The trace of a run whose return value is the model's whole state."""
    trace = written(out.trace())
    return eqx.tree_at(lambda t: t.retval, trace, drop_hot(out.retval), is_leaf=lambda x: x is None)


def at(
    target: Target,
    choices: Choices,
    steps: Int[Array, ""] | None,
    key: PRNGKeyArray | None = None,
) -> tuple[Trace, PyTree]:
    """The trace with these choices, and the model's whole state after it."""
    model = target.state_space()
    out = model.run_to(key, target.joined(choices), target.args, steps, COMPLETE)
    return traced(out), out.retval


def log_gamma(target: Target, record: Trace) -> Float[Array, ""]:
    """Log density of a trace under the target, nats."""
    fixed = as_given(target.constraints)
    return target.raised(record.score + record.log_weight, likelihood(record, fixed))


def log_uniform(key: PRNGKeyArray, like: Float[Array, ""]) -> Float[Array, ""]:
    """Log of a uniform on (0, 1]: a ratio of zero is never accepted."""
    return jnp.log1p(-jax.random.uniform(key, dtype=like.dtype))


def settle(
    accept: Bool[Array, ""],
    chain: Chain,
    trace: Trace,
    state: PyTree,
    rate: Float[Array, ""] | None = None,
) -> Chain:
    """The new trace and state where accepted, else the old; `rate` is what acceptance reports."""
    old = written(chain.trace)
    state = None if chain.state is None else state

    def pick(new, old):
        return jnp.where(accept, new, old)

    trace, state = jax.tree.map(pick, (trace, state), (old, chain.state))
    return Chain(trace, state, (accept if rate is None else rate).astype(chain.acceptance.dtype))


def movable(who: str, target: Target, trace: Trace, selection: Selection) -> Any:
    """Per site whether, or which of, its instances a kernel may move: selected, not constrained."""
    masks = walk(
        _free,
        selection.masks(trace.log_probs),
        given_masks(trace.log_probs, as_given(target.constraints)),
    )
    sites: dict[str, bool] = {}
    walk(lambda path, mask: sites.__setitem__("/".join(path), mask is not False), masks)
    if not any(sites.values()):
        fixed = sorted(target.constraints)
        raise ProgramError(
            f"{who} has nothing to move: its selection holds no free site. The sites are "
            f"{sorted(sites)}"
            + (f", of which the target fixes {fixed}: select others" if fixed else ": select some")
        )
    return masks


def _free(_, selected, fixed):
    if selected is False or fixed is True:
        return False
    if fixed is False:
        return selected
    return ~fixed if selected is True else selected & ~fixed


def exact_densities(who: str, out: Outcome) -> None:
    """Raise if the density of some site of a run that reports finite supports is estimated."""

    def check(path, log_probs, support):
        for name, node in log_probs.items():
            inner = (support or {}).get(name)
            if isinstance(node, dict):
                check((*path, name), node, inner)
            elif name not in (support or {}):
                raise ProgramError(
                    f"the density at {'/'.join((*path, name))!r} is estimated (marginal or "
                    f"normalize), and {who} needs it exactly: use MH(selection), which keeps the "
                    "estimate of the current trace, or call the inner program instead"
                )

    check((), out.log_probs, out.reports)


def where_happened(active: Any, value: PyTree) -> PyTree:
    """Activity of a site's instances broadcast to every leaf of its value."""

    def leaf(x):
        shape = jnp.shape(active) + (1,) * (jnp.ndim(x) - jnp.ndim(active))
        return jnp.broadcast_to(jnp.reshape(active, shape), jnp.shape(x))

    return jax.tree.map(leaf, value)


def all_equal(log_probs: Any, a: Any, b: Any) -> Bool[Array, ""]:
    """Are two trees of activity the same? None: happened everywhere."""
    same = [jnp.ones((), bool)]

    def leaf(_, log_prob, x, y):
        if x is not None or y is not None:
            same.append(jnp.all(y if x is None else x if y is None else x == y))

    walk(leaf, log_probs, a, b)
    return jnp.all(jnp.stack(same))
