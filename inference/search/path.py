"""What a tree search carries: partial sequences with what they are ranked by."""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Float, Int, PyTree

from ...ppl.status import Status


class Path(eqx.Module):
    """One partial sequence, as a score sees it.

    `state` is the model's; `log_prior` the log density of what was drawn and `log_likelihood` that
    of constraints, observes and factors so far (nats); `length` the number of steps.
    """

    state: PyTree
    log_prior: Float[Array, ""]
    log_likelihood: Float[Array, ""]
    length: Int[Array, ""]


class Beams(eqx.Module):
    """The beams at the end, as arrays: best first, those that died (score -inf) last.

    `scores`, `log_prior`, `log_likelihood` and `lengths` [width]; `choices` with that leading axis;
    `state` without hot parts. `tokens`, `moves`, `passes` and `rewards` are what was spent. No
    posterior and no evidence.
    """

    choices: Any
    scores: Float[Array, "*batch width"]
    log_prior: Float[Array, "*batch width"]
    log_likelihood: Float[Array, "*batch width"]
    lengths: Int[Array, "*batch width"]
    state: PyTree
    status: Status
    tokens: Int[Array, "*batch"]
    moves: Int[Array, "*batch"]
    passes: Int[Array, "*batch"]
    rewards: Int[Array, "*batch"]
