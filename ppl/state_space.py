"""State-space models: hidden Markov models and language models are one class."""

import abc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray, PyTree

from .code import Code
from .combinators.branches import check_alike, run_gated
from .errors import ProgramError
from .generative import PLAIN, GenerativeFunction, Outcome, Request
from .hot import drop_hot, map_cold
from .partial import Choices, Given, as_given, walk
from .program import as_program


class AtLength(eqx.Module):
    """The law of particles that are unfinished after the last step."""

    @abc.abstractmethod
    def log_weight(self, finished: Bool[Array, ""]) -> Float[Array, ""]:
        """Log-weight added after the last step, nats."""


class Keep(AtLength):
    """Unfinished particles count as they are: the law of the first `length` steps."""

    def log_weight(self, finished):
        """Always 0."""
        return jnp.zeros(())


_KEEP = Keep()


class Reject(AtLength):
    """Unfinished particles have weight zero: the law of what finishes within `length` steps."""

    def log_weight(self, finished):
        """0 if finished, else -inf."""
        return jnp.where(finished, 0.0, -jnp.inf)


class StateSpace(GenerativeFunction):
    """A model in time: `init(ctx, *args) -> state`, `step(ctx, state, t, *args) -> state`.

    `t` counts steps from 0 to length - 1. Choices are one flat dict: init's sites, and step's
    sites with a leading time axis (names must differ). `done(state)` is tested after init and
    after each step; a particle that is done keeps its state and weight, its later choices are
    zeros and are no part of the score. `at_length` says what becomes of a particle that is not
    done after the last step. State inside `Hot` is carried and never recorded. The return value
    is the final state without it.
    """

    init: GenerativeFunction
    step: GenerativeFunction
    length: int = eqx.field(static=True)
    done: Code | None
    at_length: AtLength
    replayer: Code | None
    bound: tuple

    def __init__(
        self,
        init: Any,
        step: Any,
        length: int,
        done: Callable | None = None,
        at_length: AtLength = _KEEP,
        replay: Callable | None = None,
        bound: tuple = (),
    ):
        """`replay(choices, t, *args) -> state`, if given, rebuilds the state after t steps."""
        if length < 0 or int(length) != length:
            raise ProgramError(f"length is the number of steps, a non-negative int; got {length!r}")
        if done is None and isinstance(at_length, Reject):
            raise ProgramError(
                "at_length=Reject() without done= rejects every particle: say when a particle is "
                "done"
            )
        self.init, self.step, self.length = as_program(init), as_program(step), int(length)
        self.done = done if done is None or isinstance(done, Code) else Code(done)
        self.replayer = replay if replay is None or isinstance(replay, Code) else Code(replay)
        self.at_length, self.bound = at_length, bound

    def bind(self, *args: PyTree) -> "StateSpace":
        """The model with its leading args fixed; see `ppl.bind`."""
        return eqx.tree_at(
            lambda m: m.bound, self, self.bound + args, is_leaf=lambda x: x is self.bound
        )

    def finished(self, state: PyTree) -> Bool[Array, ""]:
        """Is this state done?"""
        if self.done is None:
            return jnp.zeros((), bool)
        finished = jnp.asarray(self.done(state))
        if finished.dtype != bool or finished.shape:
            raise ProgramError(
                f"done(state) must be one boolean, got {finished.dtype}{list(finished.shape)}: "
                "compare or reduce it"
            )
        return finished

    def split(self, given: Given, args: tuple) -> tuple[Given, Given]:
        """Given values of init's and of step's sites, the latter with an axis of `length`."""
        if not given:
            return {}, {}
        shape = jax.eval_shape(lambda key: self.start(key, {}, args), jax.random.key(0))
        first_names = set(shape.choices)
        first = {name: node for name, node in given.items() if name in first_names}
        later = {name: node for name, node in given.items() if name not in first_names}
        for leaf in jax.tree.leaves(later):
            if jnp.shape(leaf)[:1] != (self.length,):
                if self.length == 0:  # a program: it says itself which sites it has
                    return given, {}
                raise ProgramError(
                    f"a value given for a step site ({sorted(later)}; init has "
                    f"{sorted(first_names)}) has shape {jnp.shape(leaf)}, but the model has "
                    f"{self.length} "
                    "steps: give one value a step along the first axis; ppl.Partial(values, mask) "
                    "gives some of them"
                )
        return first, later

    def start(
        self, key: PRNGKeyArray | None, given: Given, args: tuple, request: Request = PLAIN
    ) -> Outcome:
        """Run `init`; the return value is the state."""
        return self.init.run(key, given, self.bound + args, request)

    def advance(
        self,
        key: PRNGKeyArray | None,
        given: Given,
        state: PyTree,
        t: Int[Array, ""],
        args: tuple,
        request: Request = PLAIN,
    ) -> Outcome:
        """Run `step` at time t; a state that is done stays as it is and contributes nothing."""
        if self.done is None:
            out = self.step.run(key, given, (state, t, *self.bound, *args), request)
            check_alike(state, out.retval, f"step{_of(request)}", "state")
            return out
        active = ~self.finished(state)
        given_state = (state, t, *self.bound, *args)
        out = run_gated(active, self.step, key, given, given_state, request)
        check_alike(state, out.retval, f"step{_of(request)}", "state")
        new_state = map_cold(lambda new, old: jnp.where(active, new, old), out.retval, state)
        quiet = jax.tree.map(
            lambda x: jnp.where(active, x, jnp.zeros_like(x)),
            (out.choices, out.log_probs, out.log_weight),
        )
        choices, log_probs, log_weight = quiet
        happened = walk(
            lambda _, lp, a: jnp.broadcast_to(active, jnp.shape(lp)) if a is None else a & active,
            out.log_probs,
            out.active,
        )
        return Outcome(choices, log_probs, happened, log_weight, new_state, out.reports)

    def run_to(
        self,
        key: PRNGKeyArray | None,
        given: Given,
        args: tuple,
        steps: Int[Array, ""] | None = None,
        request: Request = PLAIN,
    ) -> Outcome:
        """Run init and the first `steps` steps (all, and then `at_length`, by default).

        The return value is the whole state, hot parts included. Later choices are zeros, not
        active.
        """
        steps = None if steps is None else jnp.asarray(steps, jnp.int32)
        given_init, given_steps = self.split(given, args)
        first = self.start(
            None if key is None else jax.random.fold_in(key, 0), given_init, args, request
        )

        def body(carry, inputs):
            state, log_weight = carry
            t, given_t = inputs

            def go(state):
                step_key = None if key is None else jax.random.fold_in(key, t + 1)
                out = self.advance(step_key, given_t, state, t, args, request)
                return out.retval, (
                    out.choices,
                    out.log_probs,
                    out.active,
                    out.log_weight,
                    out.reports,
                )

            if steps is None:
                state, rest = go(state)
            else:
                shapes = jax.eval_shape(go, state)[1]
                nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
                state, rest = jax.lax.cond(t < steps, go, lambda s: (s, nothing), state)
            choices, log_probs, active, inc, reports = rest
            if steps is not None:
                active = walk(
                    lambda _, lp, a: jnp.broadcast_to(t < steps, jnp.shape(lp)) if a is None else a,
                    log_probs,
                    active,
                )
            return (state, log_weight + inc), (choices, log_probs, active, reports)

        (state, log_weight), (choices, log_probs, active, reports) = jax.lax.scan(
            body,
            (first.retval, first.log_weight),
            (jnp.arange(self.length, dtype=jnp.int32), given_steps),
            length=self.length,
        )
        check_names(first.choices, choices)
        if request.weightless and not isinstance(self.at_length, Keep):
            raise ProgramError(
                f"a marginal is of a normalized law, but at_length={self.at_length} weighs it: use "
                "ppl.normalize, which takes any target"
            )
        # Part of the whole model only: what moves particles in a run weighs them before the end.
        ending = self.at_length.log_weight(self.finished(state)) if steps is None else 0.0
        return Outcome(
            {**first.choices, **choices},
            {**first.log_probs, **log_probs},
            {**first.active, **active},
            log_weight + ending,
            state,
            None if request.probe is None else {**first.reports, **reports},
        )

    def run(
        self, key: PRNGKeyArray | None, given: Given, args: tuple, request: Request = PLAIN
    ) -> Outcome:
        """See `GenerativeFunction.run`."""
        out = self.run_to(key, given, args, None, request)
        return replace(out, retval=drop_hot(out.retval))

    def replay(self, choices: Choices, t: Int[ArrayLike, ""], *args: PyTree) -> PyTree:
        """The whole state, hot parts included, after t steps with these choices."""
        if self.replayer is not None:
            return self.replayer(choices, t, *self.bound, *args)
        # The key is for densities that are only estimated, which are then dropped: nothing is
        # drawn.
        key, request = jax.random.key(0), Request(complete=True)
        return self.run_to(key, as_given(choices), args, jnp.asarray(t), request).retval


def check_names(first: Choices, later: Choices) -> None:
    """Raise if init and step have a site of the same name."""
    clash = set(first) & set(later)
    if clash:
        raise ProgramError(
            f"init and step both have a site named {sorted(clash)}: give them different names"
        )


def _of(request: Request) -> str:
    return f" of {'/'.join(request.where)!r}" if request.where else ""
