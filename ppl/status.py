"""How a run ended, as a value."""

import dataclasses
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Int

OK, DEAD, NAN, BUDGET, UNSUPPORTED = range(5)

_ADVICE = {
    OK: "ok",
    DEAD: (
        "all particles died at step {step}: every one of them had weight zero. Instead of more of "
        "the same, look whether the "
        "constraint can be met at all, use more particles, or give a Proposal that respects the "
        "constraint"
    ),
    NAN: (
        "a log density is NaN at step {step}, first at {site}. Look at the parameters of that "
        "site's distribution "
        "(a negative scale, 0/0, inf - inf), or at the reward that makes that factor"
    ),
    BUDGET: (
        "the run was stopped after {step} steps, before its end: resume it from its checkpoint, or "
        "give a sampler more stages (max_stages, max_batches)"
    ),
    UNSUPPORTED: (
        "the retained particle has weight zero at step {step}, so that no conditional run "
        "contains it: retain choices that "
        "the target makes possible"
    ),
}


class InferenceError(RuntimeError):
    """Raised for a status that is not ok, when asked to."""


class Status(eqx.Module):
    """Ok, all particles dead at step t, NaN at site s, or budget spent, as arrays.

    Step -1 is init. `bool(status)` is true when ok; `message` says what to do.
    """

    code: Int[Array, "*batch"]
    step: Int[Array, "*batch"]
    site: Int[Array, "*batch"]
    sites: tuple[str, ...] = eqx.field(static=True, default=())

    @staticmethod
    def ok(sites: tuple[str, ...] = ()) -> "Status":
        """Nothing to report."""
        return Status(jnp.int32(OK), jnp.int32(0), jnp.int32(0), sites)

    def then(self, condition: Any, code: Any, step: Any, site: Any = 0) -> "Status":
        """This status or, if ok and the condition holds, the new one: the first counts."""
        new = jnp.asarray(condition) & (self.code == OK)

        def pick(a, b):
            return jnp.where(new, jnp.asarray(a, jnp.int32), b)

        return Status(
            pick(code, self.code), pick(step, self.step), pick(site, self.site), self.sites
        )

    @property
    def message(self) -> str:
        """What happened and what to do (for a batch of runs: of the first that failed)."""
        code, step, site = (jnp.ravel(x) for x in (self.code, self.step, self.site))
        first = int(jnp.argmax(code != OK))
        name = self.sites[int(site[first])] if self.sites else "an unnamed site"
        where = "init" if int(step[first]) < 0 else int(step[first])
        text = _ADVICE[int(code[first])].format(step=where, site=repr(name))
        return text if code.size == 1 or int(code[first]) == OK else f"run {first}: {text}"

    def __bool__(self) -> bool:
        return bool(jnp.all(self.code == OK))

    def throw(self) -> None:
        """Raise `InferenceError` with the message unless ok."""
        if not self:
            raise InferenceError(self.message)

    def __repr__(self) -> str:
        try:
            return f"Status({self.message!r})"
        except Exception:  # a traced or abstract status has no message
            return (
                f"Status({', '.join(str(getattr(self, f.name)) for f in dataclasses.fields(self))})"
            )
