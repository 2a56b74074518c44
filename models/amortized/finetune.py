"""A network's law at one target made better: a few steps of forward KL by its own weighted draws.

Forward KL by self-normalized importance weights: Bornschein and Bengio (2015), "Reweighted
wake-sleep"; from a flow trained over many targets to one that is new: Tan, Hassan, Klein et al.
(2025), "Amortized sampling with transferable normalizing flows".
"""

from typing import Any

import optax
from jaxtyping import PRNGKeyArray

from ...inference import vi
from ...ppl.target import as_target
from .posterior import NeuralPosterior


def finetune(
    key: PRNGKeyArray,
    posterior: Any,
    target: Any,
    *,
    steps: int = 100,
    particles: int = 256,
    learning_rate: float = 1e-3,
    **options: Any,
) -> vi.Fit:
    """Raise E log q(x) under the target, estimated by weighted draws of q as it then is.

    Heuristic: the gradient is biased by the self-normalization, by about 1 / (effective sample
    size), and a mode in which q does not draw stays unseen. Give the result, `Fit.params`, to
    `correct`, which is exact for any q, or as `ppl.Proposal(init=fit.params)`.

    Args:
        key: of all draws.
        posterior: of `npe`, with the data in the target's constraints; or a guide of the target.
        target: the program with the observed sites as constraints; q has to draw all other sites.
        steps: of Adam, with the norm of a gradient clipped at 1.
        particles: draws a step.
        learning_rate: of Adam.
        options: of `vi.fit`: `every`, `checkpoint`, `callback`, `progress`, `trainable`.

    Returns:
        `vi.Fit`; its `params` are a guide of this target: the head and context of this data set.
    """
    target = as_target(target)
    guide = (
        posterior.at(target.constraints) if isinstance(posterior, NeuralPosterior) else posterior
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(learning_rate))
    return vi.fit(
        key, vi.q_wake(particles), guide, (target,), optimizer=optimizer, steps=steps, **options
    )
