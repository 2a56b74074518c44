"""Kernels run backwards, for conditional runs of samplers.

A kernel that is reversible with respect to its target is its own reversal; the past of a retained
particle is drawn by reversals from its end (Andrieu, Doucet and Holenstein 2010, section 2.4, on
the extended space of Del Moral, Doucet and Jasra 2006).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ...ppl.partial import Choices
from ...ppl.target import Target
from ...ppl.trace import Trace
from .. import mcmc
from ..mcmc.kernel import Chain, Kernel
from .traces import retrace


def reversal(kernel: Kernel) -> Kernel:
    """The kernel's reversal with respect to any of its targets.

    Known of the reversible `MH`, `Metropolis`, `RandomWalk`, `MALA` and `HMC`, and of `Repeat`,
    `Sequence` and `Mixture` of such. A kernel of your own says it with a method `reversed()`, which
    returns the kernel itself if it is reversible.
    """
    if hasattr(kernel, "reversed"):
        return kernel.reversed()  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(kernel, (mcmc.MH, mcmc.Metropolis, mcmc.RandomWalk, mcmc.MALA, mcmc.HMC)):
        return kernel
    if isinstance(kernel, mcmc.Repeat):
        return mcmc.Repeat(reversal(kernel.kernel), kernel.times)
    if isinstance(kernel, mcmc.Sequence):
        return mcmc.Sequence([reversal(k) for k in reversed(kernel.kernels)])
    if isinstance(kernel, mcmc.Mixture):
        return mcmc.Mixture([reversal(k) for k in kernel.kernels], kernel.probs)
    raise ValueError(
        "a conditional run (and with it random_weighted and estimate_logpdf) draws the retained "
        f"particle's past by the reversed kernel, and {type(kernel).__name__} does not say what "
        "that is: give it a method reversed() (a reversible kernel returns itself), or use SMC or "
        "Importance, whose conditional runs need no kernel"
    )


def backward(
    key: PRNGKeyArray,
    kernel: Kernel,
    target: Target,
    exponents: Float[Array, " stages"],
    retained: Choices,
) -> Trace:
    """Traces [stages + 1] of a past that ends with the choices retained."""
    kernel = reversal(kernel)
    key_trace, key = jax.random.split(key)
    last = retrace(target, retained, key_trace)

    def back(trace, inputs):
        exponent, i = inputs
        chain = Chain(trace, None, jnp.zeros(()))
        key_move = jax.random.fold_in(key, i)
        new = kernel.move(key_move, target.tempered(exponent), chain, None).trace
        return new, trace

    stages = jnp.arange(exponents.shape[0])
    first, later = jax.lax.scan(back, last, (exponents, stages), reverse=True)
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, later)
