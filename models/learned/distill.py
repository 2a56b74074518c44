"""A reward-conditioned posterior distilled into a model: BRAIn, and DPO as a special case.

Pandey et al. (2024), "BRAIn: Bayesian reward-conditioned amortized inference for natural language
generation from feedback": posterior weights and the self-normalised baseline, and that DPO on the
prior's draws is two of them with the arg max for the posterior. Rafailov et al. (2023), "Direct
preference optimization".
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float


def bradley_terry(
    rewards: Float[Array, "*batch n"], against: ArrayLike
) -> Float[Array, "*batch n"]:
    """Log probability that an output is good, which is: preferred to one of reward `against`.

    log sigmoid(r - against). For large `against` proportional to exp r: the tilted target.
    """
    other = jnp.broadcast_to(jnp.asarray(against, rewards.dtype), rewards.shape)
    return jax.nn.log_sigmoid(rewards - other)


def plackett_luce(rewards: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
    """Log probability that each of n outputs is ranked first: log softmax of the rewards."""
    return jax.nn.log_softmax(rewards, axis=-1)


def brain(
    log_q: Float[Array, "*batch n"],
    log_p: Float[Array, "*batch n"],
    log_goodness: Float[Array, "*batch n"],
    log_drawn_by: Float[Array, "*batch n"] | None = None,
    *,
    baseline: bool = True,
) -> Float[Array, ""]:
    """A loss with BRAIn's gradient, - sum_i (a_i - b_i) grad log q(y_i), over n draws of q'.

    a_i is proportional to p(y_i) p(good | y_i) / q'(y_i), the posterior, and b_i to
    q(y_i) / q'(y_i), each normalised over the draws. The value is KL(a || b), the self-normalised
    KL whose gradient this is exactly; it is 0 when q is the posterior. Without the baseline b it
    is DPG: the same optimum, noisier.

    Args:
        log_q: log densities under the model that is trained; leading axes are prompts.
        log_p: those of the prior.
        log_goodness: log p(good | y), up to a constant: `plackett_luce(rewards / beta)` for p0
            exp(r/beta), or `bradley_terry`.
        log_drawn_by: log densities of the draws q'; the prior's if None. q' covers the posterior.
        baseline: subtract b.
    """
    drawn_by = log_p if log_drawn_by is None else log_drawn_by
    log_p, goodness, drawn_by = jax.lax.stop_gradient((log_p, log_goodness, drawn_by))
    log_a = jax.nn.log_softmax(log_p + goodness - drawn_by, axis=-1)
    a = jnp.exp(log_a)
    log_a = jnp.where(a > 0, log_a, 0.0)
    log_b = jax.nn.log_softmax(log_q - drawn_by, axis=-1) if baseline else log_q
    return jnp.mean(jnp.sum(jnp.where(a > 0, a * (log_a - log_b), 0.0), axis=-1))


def dpo(
    log_q: Float[Array, "*batch 2"], log_p: Float[Array, "*batch 2"], beta: ArrayLike
) -> Float[Array, ""]:
    """Direct preference optimization: - log sigmoid(beta (log q/p of the better - of the worse)).

    The better output is first. With beta = 1 it is `brain` of two draws of the prior whose
    posterior weights are (1, 0): the arg max in place of Plackett and Luce.
    """
    ratio = log_q - jax.lax.stop_gradient(log_p)
    margin = jnp.asarray(beta, ratio.dtype) * (ratio[..., 0] - ratio[..., 1])
    return -jnp.mean(jax.nn.log_sigmoid(margin))
