"""New keys, data, thresholds, constraints, bound arrays or an equal step compile nothing."""

import jax
import jax.numpy as jnp
import pytest
from compile_count import compiles

from feynkac import inference, ppl
from feynkac.ppl import dist


def init(ctx, scale, data):
    return jnp.zeros(())


def make_step(jump: float = 1.0):
    def step(ctx, x, t, scale, data):
        x = ctx.sample("x", dist.Normal(x, scale * jump))
        ctx.sample("flag", dist.Bernoulli(probs=jnp.asarray(0.3)))
        ctx.observe("y", dist.Normal(x, 1.0), data[t])
        return x

    return step


def target(scale, data, flags, step=None):
    model = ppl.StateSpace(init, step or make_step(), 4)
    return ppl.Target(ppl.bind(model, scale), (data,), {"flag": flags})


SCALES = [jnp.asarray(1.0), jnp.asarray(2.0)]
DATA = [jnp.zeros(4), jnp.ones(4)]
FLAGS = [jnp.zeros(4, jnp.int32), jnp.ones(4, jnp.int32)]
KEYS = list(jax.random.split(jax.random.key(0), 2))
ALGORITHMS = [inference.SMC(4, inference.Systematic(ess_threshold=e)) for e in (0.5, 0.9)]


@pytest.fixture(scope="module", autouse=True)
def first_run():
    ALGORITHMS[0].run(KEYS[0], target(SCALES[0], DATA[0], FLAGS[0]))


@pytest.mark.parametrize(
    "changed",
    [
        lambda: (ALGORITHMS[0], KEYS[1], target(SCALES[0], DATA[0], FLAGS[0])),
        lambda: (ALGORITHMS[1], KEYS[0], target(SCALES[0], DATA[0], FLAGS[0])),
        lambda: (ALGORITHMS[0], KEYS[0], target(SCALES[0], DATA[1], FLAGS[0])),
        lambda: (ALGORITHMS[0], KEYS[0], target(SCALES[0], DATA[0], FLAGS[1])),
        lambda: (ALGORITHMS[0], KEYS[0], target(SCALES[1], DATA[0], FLAGS[0])),
        lambda: (ALGORITHMS[0], KEYS[0], target(SCALES[0], DATA[0], FLAGS[0], make_step())),
    ],
    ids=["key", "threshold", "data", "constraint", "bound array", "equal step"],
)
def test_compiles_nothing(changed):
    smc, key, new = changed()
    with compiles() as c:
        smc.run(key, new)
    assert c.names == []


@pytest.mark.parametrize(
    "changed",
    [
        lambda: (inference.SMC(5), target(SCALES[0], DATA[0], FLAGS[0])),
        lambda: (ALGORITHMS[0], target(SCALES[0], DATA[0], FLAGS[0], make_step(3.0))),
    ],
    ids=["particles", "other step"],
)
def test_compiles_again(changed):
    smc, new = changed()
    with compiles() as c:
        smc.run(KEYS[0], new)
    assert c.count == 1
