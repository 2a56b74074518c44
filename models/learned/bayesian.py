"""A prior over adapters, so that "which model wrote these texts" has a posterior: Bayesian LoRA.

Normal priors on the factors as in Yang, Robeyns, Wang and Aitchison (2024), "Bayesian low-rank
adaptation for large language models", section 3. The posterior is any algorithm's, and by a guide
that reads the texts (`vi.guides.amortized`) a network's: new texts, no new training.
"""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from jaxtyping import ArrayLike, Int

from ...ppl.code import Code
from ...ppl.program import Program
from ..language.protocol import LanguageModel, Prefix, Prompt
from .lora import Lora
from .proposals import log_prob_of


def lora_prior(adapter: Lora, scale: ArrayLike = 1.0) -> Program:
    """A program that draws an adapter: all factors normal about those given, one site `change`.

    Args:
        adapter: one of the wanted make, `lora(key, lm, rank)` say. Its up factors are 0, so that
            the law of adapted models is about the base model.
        scale: standard deviation of a factor's entries.

    Returns:
        A program without arguments; its return value is a `Lora`, and `change` [d] what is added
        to its factors, flat.
    """
    return Program(Code(_prior), (adapter, jnp.asarray(scale, dtype=float)))


def lora_posterior(
    adapter: Lora, lm: LanguageModel, prompt: Prompt | Prefix, scale: ArrayLike = 1.0
) -> Program:
    """The model `texts | adapter`, of one argument: texts [n, T], each up to its first end token.

    `ppl.Target(lora_posterior(adapter, lm, prompt), (texts,))` is the posterior over `change`, the
    site of `lora_prior`; its evidence is that of the texts under all adapted models together.
    """
    prefix = prompt if isinstance(prompt, Prefix) else lm.prompt(prompt)
    return Program(Code(_model), (lora_prior(adapter, scale), lm, prefix))


def _prior(ctx, adapter, scale):
    flat, unravel = ravel_pytree((adapter.ups, adapter.downs))
    law = dist.Normal(jnp.zeros_like(flat), scale.astype(flat.dtype)).to_event(1)
    ups, downs = unravel(flat + ctx.sample("change", law))
    return Lora(ups, downs, adapter.scale)


def _model(ctx, prior: Program, lm, prefix: Prefix, texts: Int[jax.Array, "n T"]):
    out = ctx.call("adapter", prior)
    ctx.factor("texts", jnp.sum(log_prob_of(out.on(lm), prefix, texts)))
    return out
