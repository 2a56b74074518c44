"""Proposals: programs that draw some of a model's choices."""

from typing import Any

import equinox as eqx
from jaxtyping import PyTree

from .generative import GenerativeFunction
from .program import as_program


class Proposal(eqx.Module):
    """`Proposal(step, init)`: draws the sites it names; the model draws the rest.

    `step(ctx, state, t, *args)` proposes sites of the model's step, and `init(ctx, *args)` (for a
    program as target the only one needed) sites of its init; args are the model's. What the model
    says is impossible may be proposed (its weight is zero); what the model says is possible must
    be (else the target is changed).
    """

    step: GenerativeFunction | None
    init: GenerativeFunction | None
    bound: tuple

    def __init__(self, step: Any = None, init: Any = None, bound: tuple = ()):
        self.step = None if step is None else as_program(step)
        self.init = None if init is None else as_program(init)
        self.bound = bound

    def bind(self, *args: PyTree) -> "Proposal":
        """The proposal with leading args fixed, before those of the model; see `ppl.bind`."""
        return Proposal(self.step, self.init, self.bound + args)
