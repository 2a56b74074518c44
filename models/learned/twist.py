"""Learned twists: log psi by a network, of a state or of each next value.

Zhao, Brekelmans, Makhzani and Grosse (2024), "Probabilistic inference in language models via
twisted sequential Monte Carlo", sections 3.1-3.2; the network on a frozen model's hidden state is
theirs too. In this library psi is the expected weight of what comes, without the weights so far.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...ppl.distributions import Token
from ...ppl.proposal import Proposal
from ...ppl.twist import AbstractTwist
from .head import Head
from .view import View
from .walks import Populations, Walks


class StateTwist(AbstractTwist):
    """log psi(state) = known + f(features): the log expected weight of all later steps, learned.

    A `ppl.Twist` as any other: `SMC(n, twist=twist)` resamples by weight times psi and keeps its
    target. With a `ceiling` log psi = known + ceiling + log sigmoid(f), for weights that are
    bounded (`fudge` needs one).
    """

    head: Head
    view: View
    ceiling: Float[Array, ""] | None = eqx.field(
        default=None, converter=lambda x: None if x is None else jnp.asarray(x, dtype=float)
    )

    def log_psi_of(self, key, fk, state, t):
        """See `AbstractTwist.log_psi_of`."""
        args = (state, t, *fk.model.bound, *fk.target.args)
        value = self._learned(self.view.features(*args))
        return self.view.known_of(*args).astype(value.dtype) + value

    def estimates(self, walks: Walks) -> Float[Array, "n T"]:
        """Log psi before step t, along sequences; 0 after a finish."""
        return jnp.where(walks.active, walks.known + self._learned(walks.features), 0.0)

    def references(self, walks: Walks) -> Float[Array, "n T"]:
        """The log weights under which sequences are draws from p(prefix) x past weights."""
        return walks.log_past

    def _learned(self, features: Array) -> Array:
        value = self.head(features)[..., 0]
        return _bounded(value, self.ceiling)


class NextTwist(AbstractTwist):
    """log psi of every next value v at once: known + f(features)[v].

    It is the log expected weight of step t, beyond what the law of the draw knows, and of all
    later ones. `proposal()` draws step t from law(v) psi(v), and the twist of the state is the sum
    of that over v, so that nothing is evaluated after a draw. If psi is exact every particle has
    the same weight.

    With `values` [V, K], constants such as the model's token embeddings, f(features)[v] is the
    inner product of the network's K outputs with row v, else the network has V outputs. `ceiling`
    as for `StateTwist`.
    """

    head: Head
    view: View
    values: Float[Array, "V K"] | None = None
    ceiling: Float[Array, ""] | None = eqx.field(
        default=None, converter=lambda x: None if x is None else jnp.asarray(x, dtype=float)
    )

    def log_next(self, features: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Log psi of each next value, less `known`; nats."""
        out = self.head(features)
        if self.values is not None:
            out = out @ jax.lax.stop_gradient(self.values).astype(out.dtype).T
        return _bounded(out, self.ceiling)

    def log_psi_of(self, key, fk, state, t):
        """See `AbstractTwist.log_psi_of`."""
        args = (state, t, *fk.model.bound, *fk.target.args)
        favour = self.log_next(self.view.features(*args))
        law = Token(self.view.law_of(*args).astype(favour.dtype))
        twisted = Token(law.logits + favour).log_normalizer - law.log_normalizer
        return self.view.known_of(*args).astype(favour.dtype) + twisted

    def proposal(self) -> Proposal:
        """Draws the site from the law times psi: the twist-induced proposal."""
        return Proposal(_propose).bind(self)

    def estimates(self, walks: Walks) -> Float[Array, "n T"]:
        """Log psi of the value made at step t, along sequences; 0 after a finish."""
        learned = self._of(walks)
        return jnp.where(walks.active, walks.known + learned, 0.0)

    def references(self, walks: Walks) -> Float[Array, "n T"]:
        """The log weights under which sequences are draws from p(prefix) x past weights."""
        return walks.log_past + walks.log_ratio

    def log_values(self, walks: Walks | Populations) -> Float[Array, "..."]:
        """Log psi of the states before step t: the sum over next values; 0 after a finish."""
        twisted = _law(walks) + self.log_next(walks.features)
        total = walks.known + jax.nn.logsumexp(twisted, axis=-1)
        return jnp.where(walks.active, total, 0.0)

    def log_proposal(self, walks: Walks | Populations) -> Float[Array, "..."]:
        """Log density of the value made at step t under `proposal()`; 0 after a finish."""
        twisted = jax.nn.log_softmax(_law(walks) + self.log_next(walks.features))
        made = jnp.take_along_axis(twisted, walks.tokens[..., None], axis=-1)[..., 0]
        return jnp.where(walks.active, made, 0.0)

    def _of(self, walks: Walks) -> Array:
        if self.values is None:
            all_values = self.log_next(walks.features)
            return jnp.take_along_axis(all_values, walks.tokens[..., None], axis=-1)[..., 0]
        out = self.head(walks.features)
        rows = jax.lax.stop_gradient(self.values).astype(out.dtype)[walks.tokens]
        return _bounded(jnp.sum(out * rows, axis=-1), self.ceiling)


def _propose(ctx, state, t, twist, *args):
    favour = twist.log_next(twist.view.features(state, t, *args))
    law = twist.view.law_of(state, t, *args)
    ctx.sample(twist.view.site, Token(law.astype(favour.dtype) + favour))


def _bounded(value: Array, ceiling: Any) -> Array:
    if ceiling is None:
        return value
    return ceiling.astype(value.dtype) + jax.nn.log_sigmoid(value)


def _law(walks: Walks | Populations) -> Array:
    if walks.log_law is None:
        raise ValueError("this needs the law of all next values: walks(..., law=True)")
    return walks.log_law
