"""Text in steps: a line, a sentence or a paragraph as one transition of the state-space model."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ...ppl.generative import PLAIN, GenerativeFunction, Outcome, Request
from ...ppl.hot import Hot
from ...ppl.partial import Given
from ...ppl.potential import Potential
from ...ppl.state_space import AtLength, Keep, Reject, StateSpace
from .delimiters import PARAGRAPH, Strings, delimiter_table
from .fusion import largest
from .passages import Laws, outcome, write_passage
from .protocol import LanguageModel, Prefix, Prompt
from .step_rewards import Step, StepPotential
from .vocabulary import Vocabulary


class StepText(eqx.Module):
    """The state of a particle that writes in steps.

    `tokens` [max_steps * step_tokens] holds the text so far, without the end-of-text token, zeros
    after the first `count`; `ends` [max_steps] the count after each step so far. `carried` and
    `values` are the states of the potentials, `slot` is the next one that is free for all.
    """

    hot: Hot
    tokens: Int[Array, "M"]
    count: Int[Array, ""]
    ends: Int[Array, "T"]
    ended: Bool[Array, ""]
    slot: Int[Array, ""]
    carried: PyTree
    values: PyTree

    @property
    def logits(self) -> Float[Array, "V"]:
        """Next-token logits, nats up to a constant."""
        return self.hot.value.logits


def _ended(state: StepText) -> Array:
    return state.ended


def _init(ctx, laws: Laws, rewards, sizes) -> StepText:
    max_steps, step_tokens, limited = sizes
    size = max_steps * step_tokens
    lm, potential = laws.lm, laws.potential
    state = lm.start(laws.prefix, size, gaps=True)
    carried = None
    if potential is not None:
        carried = potential.start(size)
        remaining = jnp.asarray(size, jnp.int32) if limited else None
        ctx.factor("potential", potential.log_prefix(carried, remaining))
    zero = jnp.zeros((), jnp.int32)
    tokens, ends = jnp.zeros(size, jnp.int32), jnp.zeros(max_steps, jnp.int32)
    values = tuple(reward.start() for reward in rewards)
    return StepText(Hot(state), tokens, zero, ends, jnp.zeros((), bool), zero, carried, values)


class _Step(GenerativeFunction):
    max_steps: int = eqx.field(static=True)
    step_tokens: int = eqx.field(static=True)
    limited: bool = eqx.field(static=True)

    def run(
        self, key: PRNGKeyArray | None, given: Given, args: tuple, request: Request = PLAIN
    ) -> Outcome:
        """One step: see `Stepwise`."""
        old, t, laws, rewards = args
        size, potential = self.step_tokens, laws.potential
        left = (self.max_steps - t) * size if self.limited else None
        last = jnp.where(old.count > 0, old.tokens[old.count - 1], laws.lm.eos)
        first = largest(old.slot)
        loop = write_passage(
            laws, key, given, request, size, old.hot.value, old.carried,
            first, last, old.ended, left,
        )  # fmt: skip
        # The loop went on until the longest step had ended: at most step_tokens slots a step.
        slot = first + largest(jnp.sum(loop.active, dtype=jnp.int32))
        piece = loop.passage
        log_weight = loop.log_weight
        if potential is not None and left is not None:
            # What a short step leaves unused cannot be written any more.
            wide = potential.log_prefix(loop.carried, left - piece.count)
            narrow = potential.log_prefix(loop.carried, left - size)
            gain = jnp.where(jnp.isneginf(narrow), -jnp.inf, narrow - wide)
            counts = ~piece.ended & ~jnp.isneginf(wide)
            log_weight += jnp.where(counts, gain, 0.0).astype(log_weight.dtype)
        at = old.count + jnp.arange(size, dtype=jnp.int32)
        inside = jnp.arange(size, dtype=jnp.int32) < piece.count
        tokens = old.tokens.at[jnp.where(inside, at, old.tokens.shape[0])].set(
            piece.tokens, mode="drop"
        )
        count = old.count + piece.count
        step = Step(piece.tokens, piece.count, tokens, count, t, piece.ended, loop.state.hidden)
        values = []
        for reward, value in zip(rewards, old.values, strict=True):
            value, gain = reward.weigh(value, step, ~old.ended)
            values.append(value)
            log_weight += gain.astype(log_weight.dtype)
        new = StepText(
            Hot(loop.state),
            tokens,
            count,
            old.ends.at[t].set(count),
            old.ended | piece.ended,
            slot,
            loop.carried,
            tuple(values),
        )
        loop = loop._replace(log_weight=log_weight)
        return outcome(loop, laws, request, new)


class Stepwise(StateSpace):
    """See `stepwise`. A product with a `ppl.Potential` weighs tokens, a `StepPotential` steps."""

    told: AtLength | None
    step_tokens: int = eqx.field(static=True)

    def __init__(
        self,
        laws: Laws,
        max_steps: int,
        step_tokens: int,
        told: AtLength | None = None,
        rewards: tuple[StepPotential, ...] = (),
    ):
        at_length = told or (Keep() if laws.potential is None else Reject())
        limited = not isinstance(at_length, Keep)

        def init(ctx, laws, rewards):
            return _init(ctx, laws, rewards, (max_steps, step_tokens, limited))

        step = _Step(max_steps, step_tokens, limited)
        super().__init__(init, step, max_steps, _ended, at_length, None, (laws, rewards))
        self.told, self.step_tokens = told, step_tokens

    def __mul__(self, other: Any) -> "Stepwise":
        """The texts weighed by one more potential, of tokens or of steps."""
        laws, rewards = self.bound
        if isinstance(other, StepPotential):
            rewards = (*rewards, other.over(Vocabulary.of(laws.lm)))
        elif isinstance(other, Potential):
            other = other.over(Vocabulary.of(laws.lm))
            product = other if laws.potential is None else laws.potential * other
            laws = eqx.tree_at(lambda x: x.potential, laws, product, is_leaf=lambda x: x is None)
        else:
            return NotImplemented
        return Stepwise(laws, self.length, self.step_tokens, self.told, rewards)

    __rmul__ = __mul__


def stepwise(
    lm: LanguageModel,
    prompt: Prompt | Prefix,
    max_steps: int,
    step_tokens: int,
    delimiter: Strings | Int[Array, "Q V"] = PARAGRAPH,
    temperature: Any = 1.0,
    at_length: AtLength | None = None,
    drawn_at: Any = None,
) -> Stepwise:
    """The language model writing after a prompt, one step of text a transition.

    A step ends with the token in which the bytes of the step first contain a delimiter (one text
    or several; for a model without a tokenizer a table from `delimiter_table`), with the end of
    the text, or after `step_tokens` tokens: then the next step goes on where it stopped. Law: that
    of `generation`, cut into steps, for texts of at most `max_steps` steps; site "token"
    [max_steps, step_tokens], of which what comes after the end of a step does not happen.

    Times a `StepReward(fn)` each step is weighed when it has ended; times a `Regex` or another
    token potential each token is, and the draws are guided, as in `Generation`. A text that has not
    ended after `max_steps` counts as it is, or, weighed by a token potential, not at all;
    `at_length` says otherwise.

    `temperature` is the model's, one number or one a token of the step; `drawn_at` the temperature
    to draw at instead: a proposal, corrected by the weights, that leaves the law alone.

    Particles meet at the ends of steps: they are weighed and resampled there, however many tokens
    each took. `generation(...) * Steps(...)` weighs the same steps at tokens, where particles meet
    in the middle of theirs: the same target, another way there.

    All particles write at the same slots, and the loop over tokens ends when every particle's step
    has ended; memory is for max_steps * step_tokens tokens. The text is in the final state:
    `particles.state.tokens`, `.count` and `.ends`; `models.step_texts` reads it.
    """
    if max_steps < 1 or step_tokens < 1:
        raise ValueError(
            f"there is at least one step of at least one token, got max_steps={max_steps} and "
            f"step_tokens={step_tokens}"
        )
    if not hasattr(delimiter, "dtype"):
        delimiter = delimiter_table(Vocabulary.of(lm), delimiter)  # pyright: ignore
    prefix = prompt if isinstance(prompt, Prefix) else lm.prompt(prompt)
    lm.check_room(prefix, max_steps * step_tokens)
    heat = None if drawn_at is None else _temperature(drawn_at, step_tokens)
    laws = Laws(lm, prefix, _temperature(temperature, step_tokens), heat, delimiter)  # pyright: ignore
    return Stepwise(laws, max_steps, step_tokens, at_length)


def _temperature(value: Any, size: int) -> Float[Array, "..."]:
    array = jnp.asarray(value, dtype=float)
    if array.shape not in ((), (size,)):
        raise ValueError(
            f"a temperature is one number, or one for each of the {size} tokens of a step; got an "
            f"array of shape {array.shape}"
        )
    return array
