"""Losses for proposals: weighted likelihood of posterior draws, whole (DPG) or as filtered (NASMC).

DPG: Parshakova, Andreoli and Dymetman (2019), "Distributional reinforcement learning for
energy-based sequential models"; the wake-phi step of reweighted wake-sleep is the same. NASMC: Gu,
Ghahramani and Turner (2015), "Neural adaptive sequential Monte Carlo".
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ...ppl.distributions import Token
from ...ppl.experts import product
from ...ppl.proposal import Proposal
from ...ppl.state_space import Keep, StateSpace
from ..language.protocol import LanguageModel, Prefix, Prompt
from ..language.writing import Generation, constrained


def dpg(log_q: Float[Array, "n"], log_weights: Float[Array, "n"]) -> Float[Array, ""]:
    """- sum_i W_i log q(x_i): KL(posterior || q) plus a constant, W the normalised weights.

    Optimum: q = the posterior. Consistent in n, not unbiased (the weights are self-normalised).
    `log_q` are log densities of whole sequences: `twist.log_proposal(walks).sum(1)`, or
    `log_prob_of(lm, ...)` of an adapted model. No gradient passes to the weights.
    """
    return -_weighted(log_q, log_weights)


def nasmc(log_q: Float[Array, "T n"], log_weights: Float[Array, "T n"]) -> Float[Array, ""]:
    """- (1/T) sum_t sum_n W_t^n log q(x_t^n | ancestors): KL(filtering law at t || q), over t.

    `log_q` are of each step's draw, `twist.log_proposal(populations)`, and the weights those after
    the step. Optimum: the locally optimal proposal p(x_t | x_<t) x weight of step t, which looks
    at no later weight: `dpg` does.
    """
    return -jnp.mean(jax.vmap(_weighted)(log_q, log_weights))


def _weighted(log_q: Array, log_weights: Array) -> Array:
    weights = jax.nn.softmax(jax.lax.stop_gradient(log_weights))
    return jnp.sum(jnp.where(weights > 0, weights * jnp.where(weights > 0, log_q, 0.0), 0.0))


def log_prob_of(
    lm: LanguageModel, prompt: Prompt | Prefix, tokens: Int[Array, "n T"]
) -> Float[Array, "n"]:
    """Log probability of each text after a prompt, up to and including its first end token.

    One pass a text, differentiable in the model's weights. A prompt that is no `Prefix` is read
    anew, so that the gradient passes through the prompt too.
    """
    prefix = prompt if isinstance(prompt, Prefix) else lm.prompt(prompt)
    ended = (tokens == lm.eos).astype(jnp.int32)
    before = jnp.cumsum(ended, axis=1) - ended
    each = jax.vmap(lambda row: lm.log_probs(prefix, row.astype(jnp.int32)))(tokens)
    return jnp.sum(jnp.where(before == 0, each, 0.0), axis=1)


def proposed_by(
    model: Generation, lm: LanguageModel, prompt: Prompt | Prefix
) -> tuple[StateSpace, Proposal]:
    """A generation whose tokens another language model proposes; weights are corrected.

    Returns the model to run on, whose law is the generation's (its state carries both models'), and
    the proposal: `model, proposal = proposed_by(story, adapted, prompt)`, then
    `SMC(n, proposal=proposal).run(key, model)`. `lm` has the same vocabulary: an adapted or a
    distilled one. What potentials know of the next token guides it as well. A text that `lm`
    cannot write must be one that the model cannot write either.
    """
    if lm.vocab_size != model.lm.vocab_size or lm.eos != model.lm.eos:
        raise ValueError(
            f"the proposing model has {lm.vocab_size} tokens and end {lm.eos}, the generation "
            f"{model.lm.vocab_size} and {model.lm.eos}: they need one vocabulary"
        )
    prefix = prompt if isinstance(prompt, Prefix) else lm.prompt(prompt)
    temperature = model.bound[2]
    other = Generation(lm, prefix, model.length, temperature, Keep())
    limited, length = not isinstance(model.at_length, Keep), model.length

    def step(ctx, states, t, temperature, potential):
        own, proposing = states
        law = Token(proposing.logits / (temperature[t] if temperature.ndim else temperature))
        remaining = length - t if limited else None
        known = None if potential is None else potential.log_next(own.carried, remaining)
        ctx.sample("token", constrained(law, known)[0])

    joint = product((model, other), (1.0, 0.0))
    assert isinstance(joint, StateSpace)
    return joint, Proposal(step).bind(temperature, model.potential)
