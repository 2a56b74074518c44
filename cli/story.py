"""The program of the demo: a language model, a hard constraint and a soft reward."""

import jax.numpy as jnp
from jaxtyping import Array

from .. import inference, models, ppl


def steered(
    lm: models.LanguageModel,
    prompt: models.Prefix,
    max_tokens: int,
    temperature: float,
    allowed: Array,
    reward: Array,
    at_length: ppl.Keep | ppl.Reject,
) -> tuple[ppl.StateSpace, inference.SMC]:
    """The posterior p(text) 1[every token allowed] exp(sum of rewards), and a guided filter."""

    # --8<-- program
    def init(ctx, lm, prompt, temperature, allowed, reward):
        return models.Text.start(lm, prompt, max_tokens)

    def step(ctx, text, t, lm, prompt, temperature, allowed, reward):
        token = ctx.sample("token", ppl.Token(text.logits / temperature))
        ctx.factor("allowed", jnp.log(allowed[token]))  # hard constraint
        ctx.factor("reward", reward[token])  # soft reward, nats
        return text.write(lm, prompt, token, t)

    def propose(ctx, text, t, lm, prompt, temperature, allowed, reward):
        ctx.sample("token", ppl.Token(text.logits / temperature + reward, mask=allowed > 0))

    story = ppl.StateSpace(init, step, max_tokens, done=models.ended, at_length=at_length)
    story = ppl.bind(story, lm, prompt, temperature, allowed, reward)
    smc = inference.SMC(n_particles=32, proposal=ppl.Proposal(propose))
    # --8<-- end
    return story, smc


def source() -> str:
    """The program's own lines."""
    import inspect
    import textwrap

    text = inspect.getsource(steered).split("# --8<-- program\n")[1].split("    # --8<-- end")[0]
    return textwrap.dedent(text).rstrip()
