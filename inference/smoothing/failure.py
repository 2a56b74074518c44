"""What can go wrong when a recorded run is read backwards, as a value."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Int

from ...ppl.status import InferenceError, Status

OK, RUN, MEMORY, BOUND, OVERFLOW = range(5)

_ADVICE = {
    OK: "ok",
    RUN: "the particle filter itself failed at step {step}: see the status of its run",
    MEMORY: (
        "the state after step {step} is not a function of that step's own choices (it remembers "
        "more). Instead of this method use smoothing.Exact() or smoothing.MCMC(), which follow the "
        "model until the states agree"
    ),
    BOUND: (
        "a step's log density exceeds log_bound at step {step}, so that rejection draws from the "
        "wrong law: give a larger bound, or use smoothing.Exact()"
    ),
    OVERFLOW: (
        "the tree of paths outgrew its capacity at step {step}: give a larger one (of the order of "
        "length + 10 n log n)"
    ),
}


class Failure(eqx.Module):
    """Ok, or the first thing that failed and its step (-1 is init), as arrays.

    `bool(failure)` is true when ok; `message` says what to do; `throw()` raises it.
    """

    code: Int[Array, "*batch"]
    step: Int[Array, "*batch"]

    @staticmethod
    def none() -> "Failure":
        """Nothing to report."""
        return Failure(jnp.int32(OK), jnp.int32(0))

    @staticmethod
    def of(status: Status) -> "Failure":
        """That of a run."""
        return Failure.none().then(status.code != OK, RUN, status.step)

    def then(self, condition, code, step) -> "Failure":
        """This failure or, if there is none and the condition holds, the new one."""
        new = jnp.asarray(condition) & (self.code == OK)

        def pick(a, b):
            return jnp.where(new, jnp.asarray(a, jnp.int32), b)

        return Failure(pick(code, self.code), pick(step, self.step))

    def first(self) -> "Failure":
        """The first of a batch."""
        i = jnp.argmax(self.code != OK)
        return Failure(self.code[i], self.step[i])

    @property
    def message(self) -> str:
        """What happened and what to do."""
        code, step = (jnp.ravel(x) for x in (self.code, self.step))
        i = int(jnp.argmax(code != OK))
        where = "init" if int(step[i]) < 0 else int(step[i])
        return _ADVICE[int(code[i])].format(step=where)

    def __bool__(self) -> bool:
        return bool(jnp.all(self.code == OK))

    def throw(self) -> None:
        """Raise `InferenceError` with the message unless ok."""
        if not self:
            raise InferenceError(self.message)
