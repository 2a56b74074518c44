"""Targets to enumerate, with what breaks samplers: impossible tokens, early ends, large factors."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from feynkac import inference, ppl
from feynkac.ppl import dist
from feynkac.ppl.state_space import AtLength

END = 0
LENGTH = 3

# [mood, previous, token]; the previous token of the first is END. Token 2 never follows 2.
TABLE = np.array(
    [
        [[0.2, 0.5, 0.3], [0.3, 0.0, 0.7], [0.4, 0.6, 0.0]],
        [[0.1, 0.3, 0.6], [0.5, 0.2, 0.3], [0.2, 0.8, 0.0]],
    ]
)
# Log factors [t, token], nats.
MILD = np.array([[0.5, -1.0, 0.3], [0.0, 0.7, -0.6], [-0.4, 1.0, 0.2]])
# At step 1 only one token is not ruled out, at the last step one is.
HARSH = np.array([[-21.0, 0.0, 0.4], [-20.0, 20.0, -20.0], [0.3, 0.0, -np.inf]])


def _init(ctx, table, factors):
    mood = ctx.sample("mood", dist.Bernoulli(probs=0.4))
    ctx.factor("first", jnp.where(mood == 1, 0.3, -0.2))
    return {"mood": mood, "last": jnp.zeros((), jnp.int32), "ended": jnp.zeros((), bool)}


def _step(ctx, state, t, table, factors):
    token = ctx.sample("token", ppl.Token(jnp.log(table[state["mood"], state["last"]])))
    ctx.factor("fit", factors[t, token])
    return {"mood": state["mood"], "last": token, "ended": token == END}


def _ended(state):
    return state["ended"]


KEEP = ppl.Keep()


def text(factors=MILD, at_length=KEEP, constraints=None, length=LENGTH) -> ppl.Target:
    """A mood, then up to `length` tokens of three, the first of which ends the text."""
    model = ppl.StateSpace(_init, _step, length, _ended, at_length)
    return ppl.Target(model, (jnp.asarray(TABLE, float), jnp.asarray(factors, float)), constraints)


def _guess_step(ctx, state, t, table, factors):
    # Half the model, half uniform: it proposes what the model forbids too.
    ctx.sample("token", ppl.Token(jnp.log(0.5 * table[state["mood"], state["last"]] + 1 / 6)))


def _guess_init(ctx, table, factors):
    ctx.sample("mood", dist.Bernoulli(probs=0.7))


BOOTSTRAP = None
STEP = ppl.Proposal(_guess_step)
INIT = ppl.Proposal(init=_guess_init)
BOTH = ppl.Proposal(_guess_step, _guess_init)


RESAMPLERS = [
    inference.Multinomial(),
    inference.Stratified(),
    inference.Systematic(),
    inference.Residual(),
    inference.SSP(),
    inference.Killing(),
]


class Any(inference.Resampler):
    """The resampler of this index, as data: one compiled filter serves all six."""

    index: Int[Array, ""] = eqx.field(converter=jnp.asarray, kw_only=True)

    def _draw(self, key, weights):
        draws = [lambda *a, r=r: r._draw(*a) for r in RESAMPLERS]
        return jax.lax.switch(self.index, draws, key, weights)

    def _draw_conditional(self, key, weights, retained):
        draws = [lambda *a, r=r: r._draw_conditional(*a) for r in RESAMPLERS]
        return jax.lax.switch(self.index, draws, key, weights, retained)


def resampler(kind, threshold: float = 0.5) -> Any:
    """The resampler of this class in compiled-once form; None never resamples."""
    index = [type(r) for r in RESAMPLERS].index(kind) if kind else 0
    return Any(ess_threshold=threshold if kind else 0.0, index=index)


class Ending(AtLength):
    """`Reject()` if `reject`, else `Keep()`, as data."""

    reject: Bool[Array, ""] = eqx.field(converter=jnp.asarray)

    def log_weight(self, finished):
        kept, rejected = (end.log_weight(finished) for end in (ppl.Keep(), ppl.Reject()))
        return jnp.where(self.reject, rejected, kept)
