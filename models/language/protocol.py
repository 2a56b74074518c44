"""What a language model is to the rest of the library: a shared prefix, a per-particle suffix.

Every method is written for one particle; callers `jax.vmap` over states and tokens and leave the
model, the prefix and the slot unbatched (`in_axes=None`), so that weights and prompt are stored
once and cache writes stay in place.
"""

import abc
from collections.abc import Mapping, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PyTree

from .tokenizer import Tokenizer

Prompt = str | Sequence[Mapping[str, str]] | Sequence[int] | np.ndarray | Array


class Prefix(eqx.Module):
    """A prompt that has been read; shared by all particles.

    `cache` is the model's own memory of it, `length` its number of tokens, `logits` the logits of
    the next token, `hidden` the vector that they are read from (None where a model has none).
    `place` says where in a cache of several prompts this one is; see `Prompts`.
    """

    cache: PyTree
    length: Int[Array, ""]
    logits: Float[Array, "V"]
    hidden: Float[Array, "D"] | None = None
    place: Int[Array, ""] | None = None


class Prompts(eqx.Module):
    """Several prompts that have been read, to be chosen from by each particle: `lm.prompts`.

    The joint `cache` is stored once, however many particles choose from it.
    """

    cache: PyTree
    length: Int[Array, "K"]
    logits: Float[Array, "K V"]
    hidden: Float[Array, "K D"] | None
    place: Int[Array, "K"]

    def __len__(self) -> int:
        return self.length.shape[0]

    def choose(self, index: Int[Array, ""]) -> Prefix:
        """Prompt number `index`, which may differ between particles."""
        hidden = None if self.hidden is None else self.hidden[index]
        at = self.length[index], self.logits[index], hidden, self.place[index]
        return Prefix(self.cache, *at)


class State(eqx.Module):
    """One particle after some suffix tokens: next-token `logits` and the model's `cache` of them.

    Both are large and a function of the tokens: carry them, never record them. `hidden` is the
    vector that the logits are read from, for heads of other kinds (None where a model has none).
    `written` says which slots hold a token of this particle; None: all so far.
    """

    logits: Float[Array, "V"]
    cache: PyTree
    hidden: Float[Array, "D"] | None = None
    written: Bool[Array, "S"] | None = None

    def marked(self, slot: Int[Array, ""], write: bool | Bool[Array, ""]) -> Array | None:
        """`written` with this slot filled in; ValueError if the state was started without gaps."""
        if self.written is not None:
            return self.written.at[slot].set(write)
        if write is not True:
            raise ValueError(
                "this state counts every slot as written: start it with lm.start(prefix, "
                "max_tokens, gaps=True) to advance with write="
            )
        return None


class LanguageModel(eqx.Module):
    """A distribution over token sequences, one token at a time.

    Law: `start`, then `advance` with tokens y_0, ..., y_{s-1} at slots 0, ..., s-1, leaves in
    `logits` those of p(y_s | prompt, y_0, ..., y_{s-1}); `replay` gives the same state at once and
    `log_probs` the same conditionals (to 1e-4 in float32). A slot is the same for all particles,
    because it is where they all write; a particle that has nothing to write at one leaves a gap
    there (`write` false), and its text is what it has written, gaps left out.
    """

    tokenizer: eqx.AbstractVar[Tokenizer | None]
    vocab_size: eqx.AbstractVar[int]
    eos: eqx.AbstractVar[int]
    context: eqx.AbstractVar[int]

    @abc.abstractmethod
    def prefill(self, tokens: Int[Array, "bucket"], length: Int[Array, ""]) -> Prefix:
        """Read the first `length` (at least 1) of the padded prompt `tokens`."""

    @abc.abstractmethod
    def join(self, caches: Sequence[PyTree]) -> tuple[PyTree, Int[Array, "K"]]:
        """The caches of several prompts as one, and the `place` of each in it."""

    @abc.abstractmethod
    def start(self, prefix: Prefix, max_tokens: int, gaps: bool = False) -> State:
        """The state before any suffix token, with room for `max_tokens` of them.

        With `gaps`, `advance` takes `write` and `max_tokens` is the number of slots. Raises
        ValueError if prompt and `max_tokens` exceed the context (seen outside `jit`).
        """

    @abc.abstractmethod
    def advance(
        self,
        prefix: Prefix,
        state: State,
        token: Int[Array, ""],
        slot: Int[Array, ""],
        write: bool | Bool[Array, ""] = True,
        live: bool | Bool[Array, ""] = True,
    ) -> State:
        """Append `token` at suffix slot number `slot` (the same for all particles, and ascending).

        Where `write` is false nothing is appended: the slot stays empty and the logits as they
        were. That needs a state with gaps. Where `live` is false the new state is never read, as of
        a text that has ended: it is unspecified, and the network need not run.
        """

    @abc.abstractmethod
    def replay(
        self, prefix: Prefix, tokens: Int[Array, "T"], count: Int[Array, ""], max_tokens: int
    ) -> State:
        """The state after the first `count` of `tokens`, by one teacher-forced pass."""

    @abc.abstractmethod
    def log_probs(self, prefix: Prefix, tokens: Int[Array, "T"]) -> Float[Array, "T"]:
        """Teacher-forced log p(tokens[t] | prompt, tokens[:t]) for every t, nats; T >= 1."""

    def prompt(self, prompt: Prompt, bucket: int = 64) -> Prefix:
        """Read a prompt: a text, chat messages or token ids.

        Compiles once for each padded length, a multiple of `bucket`.
        """
        return _prefill(self, *encode_prompt(self, prompt, bucket))

    def prompts(self, prompts: Sequence[Prompt], bucket: int = 64) -> Prompts:
        """Read several prompts, for particles that choose theirs: `Prompts.choose`.

        Attention then looks at the slots of all of them, with weight exactly zero outside the
        chosen one: each token costs as if the prompts were one, and nothing is copied.
        """
        read = [self.prompt(prompt, bucket) for prompt in prompts]
        if not read:
            raise ValueError("give at least one prompt to choose from")
        cache, place = self.join([prefix.cache for prefix in read])
        each = [(prefix.length, prefix.logits, prefix.hidden) for prefix in read]
        length, logits, hidden = jax.tree.map(lambda *xs: jnp.stack(xs), *each)
        return Prompts(cache, length, logits, hidden, place)

    def check_room(self, prefix: Prefix | Prompts, max_tokens: int) -> None:
        """Raise ValueError if prompt and `max_tokens` exceed the context; silent under `jit`."""
        if isinstance(prefix.length, Tracer):
            return
        longest = int(np.asarray(prefix.length).max())
        if longest + max_tokens > self.context:
            raise ValueError(
                f"A prompt of {longest} tokens and max_tokens={max_tokens} exceed the context of "
                f"{self.context} tokens. Shorten the prompt or ask for fewer tokens."
            )


@eqx.filter_jit
def _prefill(lm: LanguageModel, tokens: Array, length: Array) -> Prefix:
    return lm.prefill(tokens, length)


def _ids(lm: LanguageModel, prompt: Prompt) -> list[int]:
    if isinstance(prompt, np.ndarray | Array):
        if prompt.ndim != 1 or not np.issubdtype(prompt.dtype, np.integer):
            raise ValueError(
                f"Token ids are a vector of integers, not {prompt.dtype}{prompt.shape}."
            )
        return [int(i) for i in np.asarray(prompt)]
    messages = not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], Mapping)
    if not messages and not isinstance(prompt, str):
        return [int(i) for i in prompt]  # pyright: ignore[reportArgumentType]
    if lm.tokenizer is None:
        raise ValueError("This model has no tokenizer: give the prompt as a list of token ids.")
    if messages:
        return lm.tokenizer.encode(lm.tokenizer.chat(prompt))  # pyright: ignore[reportArgumentType]
    begin = [lm.tokenizer.bos] if lm.tokenizer.add_bos and lm.tokenizer.bos is not None else []
    return begin + lm.tokenizer.encode(prompt)  # pyright: ignore[reportArgumentType]


def encode_prompt(
    lm: LanguageModel, prompt: Prompt, bucket: int = 64
) -> tuple[Int[Array, "bucket"], Int[Array, ""]]:
    """Token ids of a prompt, zero-padded to a multiple of `bucket`, and how many are valid.

    Args:
        lm: the model, for its tokenizer and limits.
        prompt: a text, chat messages (rendered by the model's template, open for its answer) or
            token ids. An empty prompt becomes the single token bos, or eos in a model whose
            tokenizer has no bos.
        bucket: the padding unit; the padded length never exceeds the context.

    Raises:
        ValueError: if the prompt does not fit into the context or has ids outside the vocabulary.
    """
    ids = _ids(lm, prompt)
    if not ids:
        bos = None if lm.tokenizer is None else lm.tokenizer.bos
        ids = [lm.eos if bos is None else bos]
    if len(ids) >= lm.context:
        raise ValueError(
            f"The prompt has {len(ids)} tokens; the model's context of {lm.context} leaves no room "
            "for an answer. Shorten the prompt."
        )
    if min(ids) < 0 or max(ids) >= lm.vocab_size:
        raise ValueError(f"Token ids are 0 to {lm.vocab_size - 1}; got {min(ids)} to {max(ids)}.")
    padded = np.zeros(min(-(-len(ids) // bucket) * bucket, lm.context), np.int32)
    padded[: len(ids)] = ids
    return jnp.asarray(padded), jnp.asarray(len(ids), jnp.int32)
