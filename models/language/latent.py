"""A latent variable behind the text: who speaks, or where in it something stands."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from ...ppl.code import Code
from ...ppl.distributions import Token
from ...ppl.state_space import StateSpace
from .protocol import LanguageModel, Prompt, Prompts
from .writing import Generation, Text, generation


class LatentText(eqx.Module):
    """The state of a particle: its latent value and its text."""

    latent: PyTree
    text: Text


def _done(state: LatentText) -> Array:
    return state.text.ended


def _init(ctx, draw, change, base, extra):
    latent = draw(ctx, *extra)
    chosen = change(base, latent, *extra)
    return LatentText(latent, chosen.init(ctx, *chosen.bound))


def _step(ctx, state, t, draw, change, base, extra):
    chosen = change(base, state.latent, *extra)
    return LatentText(state.latent, chosen.step(ctx, state.text, t, *chosen.bound))


class Latent(StateSpace):
    """See `latent`. `latent(...) * potential` weighs the texts."""

    @property
    def base(self) -> Generation:
        """The generation that the latent value changes."""
        return self.bound[2]

    def __init__(self, base: Generation, draw: Any, change: Any, extra: tuple = ()):
        bound = (Code(draw), Code(change), base, extra)
        super().__init__(_init, _step, base.length, _done, base.at_length, None, bound)

    def __mul__(self, other: Any) -> "Latent":
        """The texts weighed by one more potential."""
        draw, change, base, extra = self.bound
        product = base * other
        return product if product is NotImplemented else Latent(product, draw, change, extra)

    __rmul__ = __mul__


def latent(base: Generation, draw: Callable, change: Callable, *extra: PyTree) -> Latent:
    """A generation of which a latent variable decides a part.

    `draw(ctx, *extra) -> z` samples the latent sites; `change(generation, z, *extra)` gives the
    generation that writes when they are z: of the same length, vocabulary and kind of potential.
    Law: p(z) p(x | z), each text weighed by the potentials. `extra` are arrays of both functions.
    """
    return Latent(base, draw, change, extra)


def with_prefix(base: Generation, prefix: Any) -> Generation:
    """The generation after another prompt."""
    lm, _, temperature, potential = base.bound
    return eqx.tree_at(
        lambda g: g.bound,
        base,
        (lm, prefix, temperature, potential),
        is_leaf=lambda x: x is base.bound,
    )


def personas(
    lm: LanguageModel,
    prompts: Sequence[Prompt] | Prompts,
    max_tokens: int,
    log_prior: ArrayLike | None = None,
    **options: Any,
) -> Latent:
    """A text by one of several speakers: site "persona" chooses the prompt, "token" is the text.

    Law: i ~ softmax(log_prior) (uniform by default), then `generation` after prompts[i], with its
    `options`. Weighed by a reward or a constraint, the posterior of "persona" says whose texts
    fulfil it; with the text given it classifies (exactly: `prompt_posterior`). The prompts' caches
    are stored once; each token costs attention over all of them.
    """
    read = prompts if isinstance(prompts, Prompts) else lm.prompts(prompts)
    prior = jnp.zeros(len(read)) if log_prior is None else jnp.asarray(log_prior, dtype=float)
    if prior.shape != (len(read),):
        raise ValueError(f"log_prior has shape {prior.shape}, but there are {len(read)} prompts")
    lm.check_room(read, max_tokens)
    base = generation(lm, read.choose(jnp.int32(0)), max_tokens, **options)
    return Latent(base, _speaker, _speaks, (read, prior))


def _speaker(ctx, prompts, prior):
    return ctx.sample("persona", Token(prior))


def _speaks(base, index, prompts, prior):
    return with_prefix(base, prompts.choose(index))


def prompt_posterior(
    lm: LanguageModel,
    prompts: Sequence[Prompt] | Prompts,
    tokens: Int[Array, "T"],
    log_prior: ArrayLike | None = None,
) -> tuple[Float[Array, "K"], Float[Array, ""]]:
    """Which prompt a text was written after: log posterior [K] and log evidence, nats, exact.

    One teacher-forced pass a prompt; `tokens` includes the end-of-text token if the text ended.
    """
    read = prompts if isinstance(prompts, Prompts) else lm.prompts(prompts)
    prior = jnp.zeros(len(read)) if log_prior is None else jnp.asarray(log_prior, dtype=float)

    def one(index):
        return jnp.sum(lm.log_probs(read.choose(index), tokens))

    log_likelihood = jax.lax.map(one, jnp.arange(len(read), dtype=jnp.int32))
    joint = jax.nn.log_softmax(prior) + log_likelihood.astype(prior.dtype)
    log_evidence = jax.nn.logsumexp(joint)
    return joint - log_evidence, log_evidence
