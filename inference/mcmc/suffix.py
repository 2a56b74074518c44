"""Regenerating the end of a text: suffix Metropolis-Hastings with the exact index ratio.

The move of QUEST (Faria et al. 2024, arXiv 2406.00049) and of power sampling (Karan and Du 2025,
arXiv 2510.14901): a step m uniform among the text's, the rest from the model or a proposal. The
number of steps to choose m from differs between the old text and the new one; the ratio
len(x) / len(x') accounts for it.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ...ppl.errors import ProgramError
from ...ppl.feynman_kac import FeynmanKac, Retained
from ...ppl.generative import Outcome, Request, kept
from ...ppl.partial import overlay, spelled
from ...ppl.probe import FINITE_SUPPORT
from ...ppl.proposal import Proposal
from ...ppl.selection import select
from ...ppl.target import Target
from ...ppl.trace import Trace
from .kernel import Kernel
from .transition import exact_densities, log_uniform, settle, traced, written


class Suffix(Kernel):
    """`Suffix(proposal=None)`: choose a step of the text, make anew all from there on.

    The step m is uniform among the steps that happened (the first `steps` of them in a filter);
    from m on, steps come from the model or, the sites that it names, from a `ppl.Proposal`'s step
    program. Accepted with probability min(1, w' len(x) / (w len(x'))), w the product of the
    potentials from m on: for texts that end early the lengths differ, and without their ratio short
    texts come up too often. Init's sites and constrained steps are not moved.

    Power sampling is `ctx.factor("power", (alpha - 1) * log_p)` in the model's step, reward-tilted
    sampling `ctx.factor("reward", r / beta)`.

    Errors: a model without steps; a proposal with estimated densities in the model.
    """

    proposal: Proposal | None = None

    def __check_init__(self):
        check_proposal("Suffix", self.proposal)

    def move(self, key, target, chain, steps=None):
        """See `Kernel.move`."""
        key_index, key_draw, key_accept = jax.random.split(key, 3)
        old = written(chain.trace)
        m = draw_step("Suffix", key_index, target, old)
        drawn = suffixes("Suffix", key_draw, 1, target, old, m, self.proposal, steps)
        trace, log_ratio, state = jax.tree.map(lambda x: x[0], drawn)
        accept = log_uniform(key_accept, log_ratio) < log_ratio
        return settle(accept, chain, trace, state)


SuffixMH = Suffix


def check_proposal(who: str, proposal: Proposal | None) -> None:
    """Raise unless the proposal is None or has a step program."""
    if proposal is not None and proposal.step is None:
        raise ProgramError(
            f"{who} makes steps anew, but its proposal has no step program: write "
            "ppl.Proposal(step), step(ctx, state, t, *args)"
        )


def step_sites(who: str, target: Target, trace: Trace) -> Any:
    """The activity of the sites of the model's steps, [steps, ...] each."""
    model = target.state_space()
    first = set(
        jax.eval_shape(lambda k: model.start(k, {}, target.args), jax.random.key(0)).choices
    )
    later = {name: node for name, node in trace.active.items() if name not in first}
    if model.length == 0 or not later:
        raise ProgramError(
            f"{who} makes steps of a text anew, but the model has no steps with sites (its sites "
            f"are {sorted(trace.log_probs)}): use MH(selection), or write the model as a "
            "ppl.StateSpace"
        )
    return later


def length(active: Any) -> Int[Array, ""]:
    """Number of steps in which any site happened."""
    rows = [jnp.any(x.reshape(x.shape[0], -1), axis=1) for x in jax.tree.leaves(active)]
    return jnp.sum(jnp.any(jnp.stack(rows), axis=0), dtype=jnp.int32)


def draw_step(who: str, key: PRNGKeyArray, target: Target, trace: Trace) -> Int[Array, ""]:
    """A step, uniform among those of the trace; 0 if there are none."""
    n = length(step_sites(who, target, trace))
    return jax.random.randint(key, (), 0, jnp.maximum(n, 1), dtype=jnp.int32)


def log_index_ratio(
    who: str, target: Target, old: Trace, new: Trace, m: Int[Array, ""], like: Float[Array, ""]
) -> Float[Array, ""]:
    """Log probability of choosing step m in the new trace, minus that in the old one."""
    n_old, n_new = (length(step_sites(who, target, t)).astype(like.dtype) for t in (old, new))
    ratio = jnp.log(jnp.maximum(n_old, 1)) - jnp.log(jnp.maximum(n_new, 1))
    return jnp.where(m.astype(like.dtype) < n_new, ratio, -jnp.inf)


def suffixes(
    who: str,
    key: PRNGKeyArray,
    n: int,
    target: Target,
    old: Trace,
    m: Int[Array, ""],
    proposal: Proposal | None,
    steps: Int[Array, ""] | None,
) -> tuple[Trace, Float[Array, " n"], PyTree]:
    """`n` texts with a new suffix from step m: trace, log ratio and whole state, [n].

    The ratio is that of w(x) = gamma(x) / (q(suffix) len(x)) between the new text and the old.
    """

    def weighed(new, log_w):
        return log_w + log_index_ratio(who, target, old, new, m, log_w)

    if proposal is None:
        later = select(*step_sites(who, target, old))[m:]

        def one(key):
            new, log_w, state = target.regenerate(key, old, later, steps)
            return new, weighed(new, log_w), state

        return jax.vmap(one)(jax.random.split(key, n))

    every = jnp.full_like(m, target.state_space().length)
    fk = FeynmanKac(target, Proposal(proposal.step, bound=proposal.bound))
    _check_exact(who, target)
    # The last lane goes along the old text, to weigh it.
    keys = jax.random.split(key, n + 1)
    starts = jnp.concatenate([jnp.broadcast_to(m, (n,)), every[None]])

    def lane(key, start):
        return _guided(fk, key, old, m, start, steps)

    new, log_w, state = jax.vmap(lane)(keys, starts)
    new, state = jax.tree.map(lambda x: x[:-1], (new, state))
    return new, jax.vmap(weighed)(new, log_w[:-1] - log_w[-1]), state


def _guided(
    fk: FeynmanKac,
    key: PRNGKeyArray,
    old: Trace,
    m: Int[Array, ""],
    start: Int[Array, ""],
    steps: Int[Array, ""] | None,
) -> tuple[Trace, Float[Array, ""], PyTree]:
    """The old text up to `start`, then the proposal's; the log potentials from step m on."""
    model, target = fk.model, fk.target
    fixed_init, fixed = fk.split(target.constraints)
    kept_init, retained = fk.split(kept(old))
    first = model.start(jax.random.fold_in(key, 0), overlay(fixed_init, kept_init), target.args)

    def body(carry, inputs):
        state, log_weight, log_w = carry
        t, fixed_t, kept_t = inputs

        def go(state):
            moved = fk.step(
                jax.random.fold_in(key, t + 1), fixed_t, state, t, Retained(kept_t, t < start)
            )
            rest = (moved.choices, moved.log_probs, moved.active)
            return moved.state, moved.log_weight, moved.log_potential, rest

        if steps is None:
            state, weight, potential, rest = go(state)
        else:
            _, *shapes = jax.eval_shape(go, state)
            nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            state, weight, potential, rest = jax.lax.cond(
                t < steps, go, lambda s: (s, *nothing), state
            )
        potential = jnp.where(t < m, jnp.zeros_like(potential), potential)
        return (state, log_weight + weight, log_w + potential), rest

    carry = (first.retval, first.log_weight, jnp.zeros_like(first.log_weight))
    inputs = (jnp.arange(model.length, dtype=jnp.int32), fixed, retained)
    (state, log_weight, log_w), (choices, log_probs, active) = jax.lax.scan(
        body, carry, inputs, length=model.length
    )
    ending = fk.end(state) if steps is None else 0.0
    out = Outcome(
        {**first.choices, **choices},
        {**first.log_probs, **log_probs},
        {**spelled(first.active, first.log_probs), **active},
        log_weight + ending,
        state,
    )
    return traced(out), log_w + ending, state


def _check_exact(who: str, target: Target) -> None:
    def run(key):
        return target.state_space().run(key, {}, target.args, Request(probe=FINITE_SUPPORT))

    exact_densities(f"{who} with a proposal", jax.eval_shape(run, jax.random.key(0)))
