"""What a learned twist sees of a model's state."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from ...ppl.code import Code
from ...ppl.distributions import Token
from ...ppl.state_space import Keep
from ..language.writing import Generation, constrained


class View(eqx.Module):
    """How a state is read; each function takes `(state, t, *args)`, args the model's.

    - `features` [D]: what the network is given.
    - `law` [V]: log probabilities, up to a constant, of the values of `site` that the model draws
      at step t. Needed by `NextTwist` only.
    - `known`: a part of the log expected future weight that need not be learned, nats; 0 if None.
    """

    features: Code
    law: Code | None
    known: Code | None
    site: str = eqx.field(static=True, default="token")

    def __init__(
        self,
        features: Callable[..., Array],
        law: Callable[..., Array] | None = None,
        known: Callable[..., Array] | None = None,
        site: str = "token",
    ):
        self.features, self.site = Code(features), site
        self.law = None if law is None else Code(law)
        self.known = None if known is None else Code(known)

    def known_of(self, state: PyTree, t: Int[Array, ""], *args: PyTree) -> Float[Array, ""]:
        """`known`, or 0."""
        return jnp.zeros(()) if self.known is None else self.known(state, t, *args)

    def law_of(self, state: PyTree, t: Int[Array, ""], *args: PyTree) -> Float[Array, "V"]:
        """`law`; ValueError if there is none."""
        if self.law is None:
            raise ValueError(
                "next values are twisted only where the law that they are drawn from is known: "
                "give View(features, law=...), or use text_view(generation)"
            )
        return self.law(state, t, *args)


def text_view(model: Generation, features: Callable[..., Any] | None = None) -> View:
    """The view of a generation: the model's hidden state and the time that is left.

    `law` is the locally constrained law that the generation draws from, `known` its normalizer:
    what the potentials forbid at the next token. `features(text, t, *args)`, if given, instead of
    the hidden state, which not every model has.
    """
    length, limited = model.length, not isinstance(model.at_length, Keep)

    def hidden(text, t, *args):
        state = text.hot.value.hidden
        if state is None:
            raise ValueError(
                "this language model has no hidden state: say what a twist reads with "
                "text_view(model, features)"
            )
        left = jnp.asarray(length - t, state.dtype) / length
        return jnp.concatenate([state, left[None]])

    def laws(text, t, lm, prefix, temperature, potential):
        plain = Token(text.logits / (temperature[t] if temperature.ndim else temperature))
        remaining = length - t if limited else None
        log_next = None if potential is None else potential.log_next(text.carried, remaining)
        return plain, constrained(plain, log_next)

    def law(text, t, *args):
        return laws(text, t, *args)[1][0].logits

    def known(text, t, *args):
        plain, (guided, favour) = laws(text, t, *args)
        if favour is None:
            return jnp.zeros((), plain.logits.dtype)
        return guided.log_normalizer - plain.log_normalizer

    return View(features or hidden, law, known)
