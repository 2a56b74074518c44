"""Training on data that a program makes: fresh at every step, inside the compiled loop.

Mueller, Hollmann, Pineda Arango, Grabocka and Hutter (2022), "Transformers can do Bayesian
inference", algorithm 1 (no data set is seen twice, so the loss cannot overfit); Adam with warm-up
and cosine decay.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from ...inference import vi
from ...ppl.code import Code

Net = TypeVar("Net")


def train(
    key: PRNGKeyArray,
    net: Net,
    loss: Callable[[Net, PRNGKeyArray], Float[Array, ""]],
    steps: int,
    *,
    learning_rate: float = 1e-3,
    warmup: float = 0.05,
    clip: float = 1.0,
    **options: Any,
) -> vi.Fit:
    """Minimize E[loss(net, key)] over the network's parameters; heuristic: a local minimum.

    Args:
        key: of the data of all steps.
        net: a pytree whose arrays of floats are trained, a `Network` say.
        loss: draws a batch of data from its key and returns the mean negative log score of the
            network on it, nats.
        steps: how many; the schedule is made for them.
        learning_rate: the highest; from there it falls to 0 along a cosine.
        warmup: the fraction of the steps in which it rises from 0.
        clip: largest global norm of a gradient.
        options: of `vi.fit`: `every`, `checkpoint`, `callback`, `progress`, `trainable`.

    Returns:
        `vi.Fit`; its `values` are negated losses, its `params` the network after the last step.
    """
    optimizer = adam(steps, learning_rate, round(warmup * steps), clip)
    return vi.fit(
        key, Descent(loss), net, optimizer=optimizer, steps=steps, **{"every": 100, **options}
    )


def adam(
    steps: int, learning_rate: float, warmup: int, clip: float
) -> optax.GradientTransformation:
    """Adam with clipped gradients, `warmup` steps up to the learning rate and a cosine to 0."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, max(1, warmup), max(2, steps))
    return optax.chain(optax.clip_by_global_norm(clip), optax.adam(schedule))


class Descent(eqx.Module):
    """Minus the loss, and its gradient: what `vi.fit` climbs."""

    loss: Any

    def __init__(self, loss: Any):
        self.loss = loss if isinstance(loss, eqx.Module) else Code(loss)

    def __call__(self, key: PRNGKeyArray, net: Any) -> tuple[Float[Array, ""], Any]:
        """Value and gradient, nats, at the network."""
        trained, rest = eqx.partition(net, eqx.is_inexact_array)

        def climbed(trained):
            return -self.loss(eqx.combine(trained, rest), key)

        return jax.value_and_grad(climbed)(trained)
