"""The door for a user's own network: any causal map of token ids [T] to logits [T, V].

Each step recomputes the whole padded sequence, so it costs O(context) network positions: right for
small models and for checking a cached implementation, slow for large ones.
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from .protocol import LanguageModel, Prefix, State
from .tokenizer import Tokenizer


class CallableModel(LanguageModel):
    """`apply(params, tokens [T]) -> logits [T, V]` as a language model.

    Law: row i of `apply` must depend on tokens[: i + 1] only (causal) and not on T; then
    `LanguageModel`'s law holds. The prefix cache is the padded prompt, a state's cache the suffix
    tokens.
    """

    params: PyTree
    apply: Callable[[PyTree, Array], Array] = eqx.field(static=True)
    vocab_size: int = eqx.field(static=True)
    eos: int = eqx.field(static=True)
    context: int = eqx.field(static=True)
    tokenizer: Tokenizer | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        if self.tokenizer is not None:
            self.tokenizer.check_vocab_size(self.vocab_size)
        tokens = jax.ShapeDtypeStruct((min(2, self.context),), jnp.int32)
        out = eqx.filter_eval_shape(self.apply, self.params, tokens)
        if getattr(out, "shape", None) != (*tokens.shape, self.vocab_size):
            raise ValueError(
                f"The network maps tokens {tokens.shape} to {out}; instead of this, let it return "
                f"logits of shape ({tokens.shape[0]}, {self.vocab_size})."
            )

    def _all_logits(
        self, prefix: Prefix, suffix: Int[Array, "T"]
    ) -> tuple[Float[Array, "S V"], Int[Array, "T"]]:
        """Logits of prompt and suffix on end, and where in them each suffix token stands."""
        prompt = prefix.cache if prefix.place is None else prefix.cache[prefix.place]
        size = min(prompt.shape[0] + suffix.shape[0], self.context)
        places = prefix.length + jnp.arange(suffix.shape[0], dtype=jnp.int32)
        text = jnp.zeros(size, jnp.int32).at[: prompt.shape[0]].set(prompt)
        text = text.at[places].set(suffix.astype(jnp.int32), mode="drop")
        return self.apply(self.params, text), places

    def prefill(self, tokens: Int[Array, "bucket"], length: Int[Array, ""]) -> Prefix:
        """See `LanguageModel.prefill`."""
        return Prefix(tokens, length, self.apply(self.params, tokens)[length - 1])

    def join(self, caches: Sequence[Array]) -> tuple[Array, Int[Array, "K"]]:
        """See `LanguageModel.join`: one row a prompt, of the longest one's length."""
        size = max(tokens.shape[0] for tokens in caches)
        rows = [jnp.zeros(size, jnp.int32).at[: x.shape[0]].set(x) for x in caches]
        return jnp.stack(rows), jnp.arange(len(rows), dtype=jnp.int32)

    def start(self, prefix: Prefix, max_tokens: int, gaps: bool = False) -> State:
        """See `LanguageModel.start`."""
        self.check_room(prefix, max_tokens)
        written = jnp.zeros(max_tokens, bool) if gaps else None
        return State(prefix.logits, jnp.zeros(max_tokens, jnp.int32), None, written)

    def advance(
        self,
        prefix: Prefix,
        state: State,
        token: Int[Array, ""],
        slot: Int[Array, ""],
        write: bool | Bool[Array, ""] = True,
        live: bool | Bool[Array, ""] = True,
    ) -> State:
        """See `LanguageModel.advance`."""
        written = state.marked(slot, write)
        before = slot if state.written is None else jnp.sum(state.written, dtype=jnp.int32)
        new = token.astype(jnp.int32)
        if write is not True:
            new = jnp.where(write, new, state.cache[before])
        suffix = state.cache.at[before].set(new)
        logits, places = self._all_logits(prefix, suffix)
        logits = logits[places[before]]
        if write is not True:
            logits = jnp.where(write, logits, state.logits)
        return State(logits, suffix, None, written)

    def replay(
        self, prefix: Prefix, tokens: Int[Array, "T"], count: Int[Array, ""], max_tokens: int
    ) -> State:
        """See `LanguageModel.replay`."""
        if tokens.shape[0] > max_tokens:
            raise ValueError(f"{tokens.shape[0]} tokens do not fit into max_tokens={max_tokens}.")
        self.check_room(prefix, max_tokens)
        suffix = jnp.zeros(max_tokens, jnp.int32)
        suffix = suffix.at[: tokens.shape[0]].set(tokens.astype(jnp.int32))
        logits, _ = self._all_logits(prefix, suffix)
        last = logits[prefix.length + count.astype(jnp.int32) - 1]
        return State(jnp.where(count == 0, prefix.logits, last), suffix)

    def log_probs(self, prefix: Prefix, tokens: Int[Array, "T"]) -> Float[Array, "T"]:
        """See `LanguageModel.log_probs`."""
        logits, places = self._all_logits(prefix, tokens)
        rows = jax.nn.log_softmax(logits[places - 1])
        return jnp.take_along_axis(rows, tokens.astype(jnp.int32)[:, None], axis=1)[:, 0]


class _Rest(eqx.Module):
    """An Equinox module without its arrays; hashable, puts them back and calls it."""

    static: PyTree = eqx.field(static=True)

    def __call__(self, arrays: PyTree, tokens: Array) -> Array:
        return eqx.combine(arrays, self.static)(tokens)


class _Graph(eqx.Module):
    """A Flax NNX graph without its variables; puts them back and calls it."""

    graph: Any = eqx.field(static=True)

    def __call__(self, variables: PyTree, tokens: Array) -> Array:
        from flax import nnx

        return nnx.merge(self.graph, variables)(tokens)


def from_callable(
    fn: Callable[..., Array],
    params: PyTree = None,
    *,
    vocab_size: int,
    eos: int,
    context: int,
    tokenizer: Tokenizer | None = None,
) -> CallableModel:
    """A language model from a function or an Equinox module.

    Args:
        fn: a causal `fn(params, tokens) -> logits`, tokens [T] int32, logits [T, V]; or an Equinox
            module `fn(tokens) -> logits` that holds its own parameters, without `params`.
        params: pytree of arrays. They stay arguments of the compiled program; arrays that `fn`
            closes over would become its constants.
        vocab_size: V.
        eos: the id that ends a text.
        context: largest number of tokens that the network can read.
        tokenizer: for prompts and answers as text.

    Raises:
        ValueError: if the logits have another shape.
    """
    if isinstance(fn, eqx.Module) and params is None:
        params, rest = eqx.partition(fn, eqx.is_array)
        apply: Any = _Rest(rest)
    else:
        apply = fn
    return CallableModel(
        params=params,
        apply=apply,
        vocab_size=vocab_size,
        eos=eos,
        context=context,
        tokenizer=tokenizer,
    )


def from_nnx(
    module: Any,
    *,
    vocab_size: int,
    eos: int,
    context: int,
    tokenizer: Tokenizer | None = None,
) -> CallableModel:
    """A language model from a Flax NNX module, `module(tokens [T]) -> logits [T, V]`, causal.

    Its variables become the parameters; see `from_callable` for the other arguments. Put dropout
    and batch statistics into evaluation mode first (`module.eval()`).
    """
    from flax import nnx

    graph, variables = nnx.split(module)
    return from_callable(
        _Graph(graph),
        params=variables,
        vocab_size=vocab_size,
        eos=eos,
        context=context,
        tokenizer=tokenizer,
    )
