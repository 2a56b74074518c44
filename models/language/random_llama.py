"""Small decoders with random weights, for tests and exact enumeration."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from .llama import Layer, Llama, LlamaConfig
from .tokenizer import Tokenizer


def random_llama(
    key: PRNGKeyArray,
    vocab_size: int,
    layers: int = 1,
    d: int = 16,
    heads: int = 4,
    kv_heads: int = 2,
    context: int = 128,
    eos: int = 0,
    scale: float = 1.0,
    tokenizer: Tokenizer | None = None,
) -> Llama:
    """A decoder with random weights: a small model whose answers can be enumerated.

    Args:
        key: draws the weights.
        vocab_size: number of tokens.
        layers: number of blocks.
        d: width, a multiple of 2 * `heads`.
        heads: query heads.
        kv_heads: key-value heads, a divisor of `heads`.
        context: longest text.
        eos: the end token.
        scale: standard deviation of the logits, roughly; larger is less uniform.
        tokenizer: optional.
    """
    if d % (2 * heads) or heads % kv_heads:
        raise ValueError("d must be a multiple of 2 * heads, and heads a multiple of kv_heads.")
    config = LlamaConfig(vocab_size, layers, d, 2 * d, heads, kv_heads, d // heads, context=context)
    keys = iter(jax.random.split(key, 2 + 7 * layers))

    def matrix(rows: int, columns: int) -> Array:
        return jax.random.normal(next(keys), (rows, columns)) / columns**0.5

    kv = kv_heads * config.head_dim
    blocks = tuple(
        Layer(
            attention_norm=jnp.ones(d),
            query=matrix(d, d),
            key=matrix(kv, d),
            value=matrix(kv, d),
            output=matrix(d, d),
            mlp_norm=jnp.ones(d),
            gate=matrix(2 * d, d),
            up=matrix(2 * d, d),
            down=matrix(d, 2 * d),
        )
        for _ in range(layers)
    )
    embedding, head = matrix(vocab_size, d) * d**0.5, matrix(vocab_size, d) * scale
    return Llama(  # pyright: ignore[reportCallIssue]: abstract fields that Llama computes
        embedding=embedding,
        layers=blocks,
        norm=jnp.ones(d),
        head=head,
        config=config,
        tokenizer=tokenizer,
        eos=eos,
    )
