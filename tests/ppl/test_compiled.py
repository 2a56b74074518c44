"""Entry points are compiled once a structure; what is static is compared exactly."""

import jax
import jax.numpy as jnp

from feynkac import ppl
from feynkac.ppl.compiled import compiled

KEY = jax.random.key(0)
TRACED = []


@compiled
def value(program, *args):
    TRACED.append(program)
    return program.simulate(KEY, *args).log_weight


def test_static_arguments_are_compared_exactly():
    program = ppl.program(lambda ctx, x: ctx.factor("a", 1.0 + isinstance(x, float)))
    before = len(TRACED)
    assert [value(program, x) for x in (1, 1.0, True, 1)] == [1.0, 2.0, 1.0, 1.0]
    assert len(TRACED) == before + 3
    value(program, float("nan"))
    value(program, float("nan"))
    value(program, 0.0)
    value(program, -0.0)
    assert len(TRACED) == before + 6


def test_what_is_not_an_array_is_returned_as_it_is():
    @compiled
    def mixed(x, name):
        return {"x": x + 1, "name": name, "number": 2.5, "none": None, "inner": (x, "last")}

    out = mixed(jnp.ones(()), "a")
    assert out == {"x": 2.0, "name": "a", "number": 2.5, "none": None, "inner": (1.0, "last")}
    assert jax.vmap(lambda x: mixed(x, "b")["x"])(jnp.arange(2.0)).tolist() == [1.0, 2.0]
    assert mixed.lower(jnp.ones(()), "a").compile().cost_analysis() is not None
