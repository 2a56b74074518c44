"""A population in the middle of a sampler on a static target."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from ...ppl.partial import Choices
from ...ppl.status import BUDGET, InferenceError, Status
from ...ppl.target import Target
from ...ppl.trace import Trace
from ..particles import Particles, log_mean_exp
from ..resampling import effective_sample_size
from .traces import length


class Cloud(eqx.Module):
    """Weighted traces [N] at some stage; histories as in `Particles`.

    `numbers` are the arrays of the kernel, which a `tune` function changes.
    """

    traces: Trace
    log_weights: Float[Array, "n"]
    exponent: Float[Array, ""]
    stage: Int[Array, ""]
    position: Int[Array, ""]
    status: Status
    numbers: Any
    ancestors: Int[Array, "stages n"]
    resampled: Bool[Array, "stages"]
    acceptance: Float[Array, "stages"]
    ess_history: Float[Array, "moves"]
    log_evidence_history: Float[Array, "moves"]
    exponents: Float[Array, "moves"]


class Tuning(eqx.Module):
    """What a `tune(kernel, tuning) -> kernel` function sees of the population.

    `choices` [N, ...] and `log_weights` are those about to be moved, `acceptance` the mean rate of
    the last stage (NaN before the first).
    """

    choices: Choices
    log_weights: Float[Array, "n"]
    exponent: Float[Array, ""]
    acceptance: Float[Array, ""]

    def moments(self) -> tuple[Choices, Choices]:
        """Weighted mean and standard deviation of every choice, elementwise."""
        weights = jax.nn.softmax(self.log_weights)

        def mean(x):
            return jnp.tensordot(weights, x.astype(weights.dtype), axes=1)

        centre = jax.tree.map(mean, self.choices)
        square = jax.tree.map(lambda x: mean(jnp.square(x.astype(weights.dtype))), self.choices)
        spread = jax.tree.map(lambda m, s: jnp.sqrt(jnp.maximum(s - m * m, 0)), centre, square)
        return centre, spread


class Measured(eqx.Module):
    """A population and the standard error of its log evidence, from the one run, nats."""

    particles: Particles
    log_evidence_error: Float[Array, ""]


def finish(cloud: Cloud, target: Target) -> Particles:
    """The population as a result; `target` is the user's."""
    log_weights = cloud.log_weights
    log_evidence, ess = log_mean_exp(log_weights), effective_sample_size(log_weights)

    def upto(history):
        """After the last stage nothing changes."""
        return history[jnp.minimum(jnp.arange(history.shape[0], dtype=jnp.int32), cloud.stage)]

    return Particles(
        choices=cloud.traces.choices,
        log_weights=log_weights,
        log_evidence=log_evidence,
        ess=ess,
        status=cloud.status,
        ancestors=cloud.ancestors,
        resampled=cloud.resampled,
        ess_history=upto(cloud.ess_history),
        log_evidence_history=upto(cloud.log_evidence_history),
        exponents=upto(cloud.exponents),
        acceptance=cloud.acceptance,
        lengths=jax.vmap(lambda trace: length(target, trace))(cloud.traces),
        position=cloud.position,
        state=cloud.traces.retval,
        record=None,
    )


STAGES_SPENT = (
    "max_stages were used up before the target was reached, and the last stage went there in one "
    "step: the weights are the target's but uneven. Give more max_stages, a lower ess or cess, "
    "more particles or a kernel that moves further"
)


def thrown(particles: Particles, throw: bool, spent: str = STAGES_SPENT) -> Particles:
    """The particles; with `throw` an error on the host if the status is not ok.

    `spent` is the advice for status BUDGET.
    """
    if throw and not isinstance(particles.log_evidence, Tracer):
        if particles.status.code.ndim == 0 and int(particles.status.code) == BUDGET:
            raise InferenceError(spent)
        particles.status.throw()
    return particles


NO_CONDITIONAL = (
    "conditional runs are not built for this sampler, so that it has no density as a distribution: "
    "use Tempered with fixed exponents, SMC or Importance"
)
