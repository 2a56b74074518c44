"""Text as a state-space model, one token a step, and what potentials make of it."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ...ppl.distributions import Token
from ...ppl.errors import ProgramError
from ...ppl.hot import Hot
from ...ppl.partial import Choices
from ...ppl.potential import Potential
from ...ppl.state_space import AtLength, Keep, Reject, StateSpace
from .protocol import LanguageModel, Prefix, Prompt, State
from .vocabulary import Vocabulary


class Text(eqx.Module):
    """The state of a particle that writes: the model's, the last token, and whether it ended.

    `carried` is the state of the potential that weighs the text, if there is one.
    """

    hot: Hot
    last: Int[Array, ""]
    ended: Bool[Array, ""]
    carried: PyTree = None

    @property
    def logits(self) -> Float[Array, "V"]:
        """Next-token logits, nats up to a constant."""
        return self.hot.value.logits

    @staticmethod
    def start(lm: LanguageModel, prefix: Prefix, max_tokens: int) -> "Text":
        """Nothing written yet after the prompt; room for `max_tokens` tokens."""
        state = lm.start(prefix, max_tokens)
        return Text(Hot(state), jnp.full((), lm.eos, jnp.int32), jnp.zeros((), bool))

    def write(
        self,
        lm: LanguageModel,
        prefix: Prefix,
        token: Int[Array, ""],
        t: Int[Array, ""],
        final: bool = False,
    ) -> "Text":
        """The state after `token` at step t; the end-of-text token ends it.

        With `final` nothing is read of a text that has ended, and the network need not run for it:
        only where the state-space model is `done` then.
        """
        ended = token == lm.eos
        live = ~(self.ended | ended) if final else True
        state = lm.advance(prefix, self.hot.value, token, t, live=live)
        return Text(Hot(state), token.astype(jnp.int32), ended, self.carried)


def ended(text: Text) -> Bool[Array, ""]:
    """The `done` predicate of a StateSpace whose state is a `Text`."""
    return text.ended


class Generation(StateSpace):
    """See `generation`. `generation * potential` weighs the texts by a `ppl.Potential`.

    Law: p(x) exp(log_complete(x)) over the texts x that end within the steps, p the language
    model's. A text that has not ended has weight zero (`Reject`), unless generation was told
    `Keep()`: then it counts with its prefix weight.

    A step draws from the locally constrained law, softmax(logits / temperature + log_next), and
    its normalizer is a factor, so that the density is that of the product whatever `log_next` is
    known: simulation, filters and Markov kernels all move by guided draws.
    """

    told: AtLength | None

    def __init__(
        self,
        lm: LanguageModel,
        prefix: Prefix,
        max_tokens: int,
        temperature: Float[Array, "..."],
        told: AtLength | None = None,
        potential: Potential | None = None,
    ):
        at_length = told or (Keep() if potential is None else Reject())
        limited = not isinstance(at_length, Keep)

        def init(ctx, lm, prefix, temperature, potential):
            text = Text.start(lm, prefix, max_tokens)
            if potential is None:
                return text
            carried = potential.start(max_tokens)
            remaining = jnp.asarray(max_tokens, jnp.int32) if limited else None
            ctx.factor("potential", potential.log_prefix(carried, remaining))
            return eqx.tree_at(lambda x: x.carried, text, carried, is_leaf=lambda x: x is None)

        def step(ctx, text, t, lm, prefix, temperature, potential):
            law = Token(text.logits / (temperature[t] if temperature.ndim else temperature))
            if potential is None:
                token = ctx.sample("token", law)
                return text.write(lm, prefix, token, t, final=True)
            remaining = max_tokens - t if limited else None
            guided, favour = constrained(law, potential.log_next(text.carried, remaining))
            token = ctx.sample("token", guided)
            carried, gain = potential.weigh(text.carried, token, token == lm.eos, remaining, text)
            ctx.factor("potential", corrected(law, guided, favour, token, gain))
            text = text.write(lm, prefix, token, t, final=True)
            return eqx.tree_at(lambda x: x.carried, text, carried, is_leaf=lambda x: x is None)

        def replay(choices: Choices, t, lm, prefix, temperature, potential):
            tokens = choices["token"]
            text = rebuilt(lm, prefix, tokens, t, max_tokens)
            if potential is None:
                return text
            carried = carry(potential, tokens, t, lm.eos, max_tokens)
            return eqx.tree_at(lambda x: x.carried, text, carried, is_leaf=lambda x: x is None)

        one_pass = potential is None or not potential.reads_model
        super().__init__(
            init, step, max_tokens, ended, at_length, replay if one_pass else None,
            (lm, prefix, temperature, potential),
        )  # fmt: skip
        self.told = told

    @property
    def lm(self) -> LanguageModel:
        """The language model."""
        return self.bound[0]

    @property
    def potential(self) -> Potential | None:
        """What the texts are weighed by, on the model's tokens."""
        return self.bound[3]

    def __mul__(self, other: Any) -> "Generation":
        """The texts weighed by one more potential."""
        if not isinstance(other, Potential):
            return NotImplemented
        lm, prefix, temperature, potential = self.bound
        other = other.over(Vocabulary.of(lm))
        if not isinstance(self.told, Keep):
            jax.eval_shape(lambda: other.start(self.length))  # what cannot be met is said here
        product = other if potential is None else potential * other
        return Generation(lm, prefix, self.length, temperature, self.told, product)

    __rmul__ = __mul__


def constrained(
    law: Token, log_next: Float[Array, "V"] | None
) -> tuple[Token, Float[Array, "V"] | None]:
    """The law of a token times what potentials say of each; and what they say, in its dtype."""
    if log_next is None:
        return law, None
    if log_next.shape != law.logits.shape:
        raise ProgramError(
            f"log_next of the potential has shape {log_next.shape}, but the model has "
            f"{law.logits.shape[-1]} tokens: put it on the model's vocabulary with `over`"
        )
    favour = log_next.astype(law.logits.dtype)
    return Token(law.logits + favour), favour


def corrected(
    law: Token,
    guided: Token,
    favour: Float[Array, "V"] | None,
    token: Int[Array, ""],
    gain: Float[Array, ""],
) -> Float[Array, ""]:
    """Log of law(token) exp(gain) / guided(token): the factor that makes up for guided draws."""
    if favour is None:
        return gain
    possible = ~jnp.isneginf(gain)
    known = favour[token]
    rest = jnp.where(possible, gain, 0.0) - jnp.where(jnp.isneginf(known), 0.0, known)
    log_weight = guided.log_normalizer - law.log_normalizer + rest
    return jnp.where(possible, log_weight, -jnp.inf)


def generation(
    lm: LanguageModel,
    prompt: Prompt | Prefix,
    max_tokens: int,
    temperature: Any = 1.0,
    at_length: AtLength | None = None,
) -> Generation:
    """The language model writing after a prompt, as a StateSpace with site "token".

    Law: tokens from softmax(logits / temperature) until end of text, at most `max_tokens`; the
    end-of-text token is part of the text. The weights and the prompt's cache are bound to the
    model: stored once, shared by all particles. `prompt` is a text, chat messages, token ids, or a
    `Prefix` from `lm.prompt`; `temperature` one number or one for each token. New weights, prompts
    of the same padded length and temperatures compile nothing. `generation(...) * potential`
    weighs the texts: see `Generation`.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens is the number of steps, at least 1; got {max_tokens}")
    temperature = jnp.asarray(temperature, dtype=float)
    if temperature.shape not in ((), (max_tokens,)):
        raise ValueError(
            f"temperature is one number, or one for each of the {max_tokens} tokens; got an array "
            f"of shape {temperature.shape}"
        )
    prefix = prompt if isinstance(prompt, Prefix) else lm.prompt(prompt)
    lm.check_room(prefix, max_tokens)
    return Generation(lm, prefix, max_tokens, temperature, at_length)


def rebuilt(
    lm: LanguageModel, prefix: Prefix, tokens: Int[Array, "T"], t: Int[Array, ""], max_tokens: int
) -> Text:
    """The state after the first t of `tokens`, by one teacher-forced pass."""
    steps = jnp.arange(tokens.shape[0], dtype=jnp.int32)
    over = jnp.any((tokens == lm.eos) & (steps < t))
    state: State = lm.replay(prefix, tokens, t, max_tokens)
    last = jnp.where(t > 0, tokens[jnp.maximum(t - 1, 0)], lm.eos).astype(jnp.int32)
    return Text(Hot(state), jnp.where(over, lm.eos, last), over)


def carry(
    potential: Potential,
    tokens: Int[Array, "T"],
    t: Int[Array, ""],
    eos: int,
    max_tokens: int,
) -> PyTree:
    """The state of a potential after the first t of `tokens`; it stays where the text ended."""

    def one(state, inputs):
        token, index = inputs
        writes = (index < t) & (token != eos)
        new = potential.advance(state, token)
        return jax.tree.map(lambda a, b: jnp.where(writes, a, b), new, state), None

    start = potential.start(max_tokens)
    steps = jnp.arange(tokens.shape[0], dtype=jnp.int32)
    return jax.lax.scan(one, start, (tokens.astype(jnp.int32), steps))[0]
