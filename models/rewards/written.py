"""What a particle has written so far, as arrays."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from ...ppl.errors import ProgramError


class Written(eqx.Module):
    """The tokens so far, `tokens[:count]`, and whether the end came; it is no part of them."""

    tokens: Int[Array, "length"]
    count: Int[Array, ""]
    ended: Bool[Array, ""]

    @staticmethod
    def nothing(length: int) -> "Written":
        """The empty text, with room for `length` tokens."""
        return Written(jnp.zeros(length, jnp.int32), jnp.int32(0), jnp.zeros((), bool))

    def write(self, token: Int[Array, ""], eos: Int[Array, ""]) -> "Written":
        """With one more token; after the end nothing more is written."""
        ended = self.ended | (token == eos)
        tokens = self.tokens.at[self.count].set(token.astype(jnp.int32), mode="drop")
        return Written(
            jnp.where(ended, self.tokens, tokens),
            jnp.where(ended, self.count, self.count + 1),
            ended,
        )


def end_of(eos: Int[Array, ""] | None, what: str) -> Int[Array, ""]:
    """The end token of a potential that has been put on a vocabulary, else an error."""
    if eos is None:
        raise ProgramError(
            f"{what} is on no vocabulary yet: multiply a model by it, or use "
            "potential.over(models.Vocabulary(token_bytes, eos))"
        )
    return eos
