"""KL-regularised reinforcement learning as a posterior: one target for every algorithm.

Korbak, Perez and Buckley (2022), "RL with KL penalties is better viewed as Bayesian inference":
max_q E_q[r] - beta KL(q || p0) has the optimum p0(x) exp(r(x) / beta) / Z, and the value beta
log Z. Sharpening: Huang et al. (2025), "Self-improvement in language models: the sharpening
mechanism", whose reward log p0(x) makes it p0(x)^(1 + 1/beta).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from ...inference.power import Power
from ...ppl.potential import Potential
from ...ppl.state_space import AtLength
from ...ppl.target import Target
from ..language.protocol import LanguageModel, Prefix, Prompt
from ..language.writing import Generation, generation


def tilted(
    model: Generation | LanguageModel,
    reward: Potential,
    beta: ArrayLike,
    *,
    prompt: Prompt | Prefix | None = None,
    max_tokens: int | None = None,
    temperature: Any = 1.0,
    at_length: AtLength | None = None,
) -> Generation:
    """The texts of a model weighed by a reward in nats: p0(x) exp(r(x) / beta).

    p0 is the generation with what it is weighed by already. Every algorithm runs on it. As beta
    goes to 0 the law collapses on the texts of highest reward, as it grows it goes to p0.

    Args:
        model: a generation; or a language model, then with `prompt`, `max_tokens` and the other
            arguments of `models.generation`.
        reward: a `Potential` whose complete log weight is r(x): `models.Reward(fn)`, say.
        beta: the temperature, or strength of the KL penalty, above 0. A new one compiles nothing.
        prompt: see `models.generation`, as for the other arguments.
        max_tokens: number of steps.
        temperature: of the tokens of p0.
        at_length: the law of texts that have not ended.
    """
    beta = _positive(beta)
    if isinstance(model, Generation):
        if prompt is not None or max_tokens is not None:
            raise ValueError("a generation has its prompt and length: give only reward and beta")
        base = model
    else:
        if prompt is None or max_tokens is None:
            raise ValueError("of a language model give prompt= and max_tokens= too")
        base = generation(model, prompt, max_tokens, temperature, at_length)
    return base * reward ** (1 / beta)


def sharpened(target: Any, beta: ArrayLike) -> Target:
    """The model rewarded by its own log probability: p(x)^(1 + 1/beta) over whole sequences.

    Not sampling at temperature beta / (1 + beta), which looks one token ahead; see `ppl.power`.
    """
    return Power(1 + 1 / _positive(beta))(target)


def reinforce_kl(
    log_q: Float[Array, "n"],
    log_p: Float[Array, "n"],
    rewards: Float[Array, "n"],
    beta: ArrayLike,
    *,
    leave_one_out: bool = True,
) -> Float[Array, ""]:
    """Minus the KL-regularised reward E_q[r] - beta KL(q || p0), with REINFORCE's gradient.

    Its value is an unbiased estimate; so is its gradient in the parameters of `log_q`, with the
    mean of the other draws as baseline (Kool et al. 2019) or without one. This is beta times the
    ELBO of the tilted target under the score function.

    Args:
        log_q: log densities of n independent draws of q itself, at least 2.
        log_p: those of p0.
        rewards: r(x), nats.
        beta: above 0.
        leave_one_out: use the baseline.
    """
    beta = _positive(beta).astype(log_q.dtype)
    n = log_q.shape[0]
    value = jax.lax.stop_gradient(rewards - beta * (log_q - log_p))
    baseline = jnp.zeros_like(value)
    if leave_one_out:
        if n < 2:
            raise ValueError("a baseline of the other draws needs at least two draws")
        baseline = (jnp.sum(value) - value) / (n - 1)
    surrogate = jnp.mean((value - baseline) * (log_q - jax.lax.stop_gradient(log_q)))
    # The gradient of -beta log q has mean zero, and is left out.
    return -(jnp.mean(value) + surrogate)


def _positive(beta: ArrayLike) -> Array:
    beta = jnp.asarray(beta, dtype=float)
    if not isinstance(beta, Tracer) and not bool((beta > 0).all()):
        raise ValueError(f"beta is above 0, got {beta}: as it goes to 0 the best text takes all")
    return beta
