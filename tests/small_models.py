"""Small models that tests of runs share: a plain one, and one that ends at random times."""

import jax
import jax.numpy as jnp
import numpy as np

from feynkac import ppl
from feynkac.models.finite import HiddenMarkovModel
from feynkac.ppl import dist

LENGTH = 12
KEEP = ppl.Keep()


def hmm(length: int = LENGTH, seed: int = 1) -> ppl.Target:
    """Three sticky states seen through noise; the symbols are random."""
    move = jnp.array([[0.8, 0.2, 0.0], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]])
    emit = jnp.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.1, 0.2, 0.7]])
    model = HiddenMarkovModel(jnp.log(jnp.full(3, 1 / 3)), jnp.log(move), jnp.log(emit))
    symbols = jax.random.randint(jax.random.key(seed), (length,), 0, 3)
    return ppl.Target(model.state_space(length), (symbols,))


def _dyadic_init(ctx, hazard, good):
    return {"x": jnp.zeros((), jnp.int32), "ended": jnp.zeros((), bool)}


def _dyadic_step(ctx, state, t, hazard, good):
    ended = ctx.sample("end", dist.Bernoulli(probs=hazard)) == 1
    x = ctx.sample("x", dist.Categorical(probs=jnp.full(4, 0.25)))
    ctx.factor("fit", jnp.where(x == good[t], 0.0, jnp.where(x < 2, -1.0, -2.0) * jnp.log(2.0)))
    return {"x": x.astype(jnp.int32), "ended": ended}


def _ended(state):
    return state["ended"]


def ending(hazard: float = 0.25, length: int = LENGTH, at_length=KEEP) -> ppl.Target:
    """Steps with weights 1, 1/2, 1/4 until each particle ends by itself."""
    good = jax.random.randint(jax.random.key(2), (length,), 0, 4)
    model = ppl.StateSpace(_dyadic_init, _dyadic_step, length, _ended, at_length)
    return ppl.Target(model, (jnp.asarray(hazard, float), good))


def arrays(tree) -> list[np.ndarray]:
    """The leaves as numpy arrays."""
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def assert_identical(a, b) -> None:
    """The same bytes in every leaf."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(arrays(a), arrays(b), strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype and x.tobytes() == y.tobytes()
