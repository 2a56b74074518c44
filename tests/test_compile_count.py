"""`compiles` counts each new executable once and a repeated call not at all."""

import jax
import jax.numpy as jnp
from compile_count import compiles


def fresh_function():
    return jax.jit(lambda x: jnp.sin(x) * 2.0 + 0.125)


def test_counts_one_for_a_new_shape_and_none_for_a_repeated_call():
    f = fresh_function()
    x, y, longer = jnp.arange(3.0), jnp.ones(3), jnp.arange(4.0)
    with compiles() as first:
        f(x)
    with compiles() as repeated:
        f(x)
        f(y)
    with compiles() as new_shape:
        f(longer)
    assert (first.count, repeated.count, new_shape.count) == (1, 0, 1), (first, repeated, new_shape)


def test_counts_a_hit_in_the_persistent_cache():
    x = jnp.arange(5.0)
    hits = []

    def listen(event, **kwargs):
        hits.append(event == "/jax/compilation_cache/cache_hits")

    fresh_function()(x)
    jax.monitoring.register_event_listener(listen)
    try:
        with compiles() as again:
            fresh_function()(x)
    finally:
        jax.monitoring.unregister_event_listener(listen)
    assert any(hits), "the persistent cache of tests/conftest.py is off"
    assert again.count == 1, again


def test_does_not_listen_after_the_block():
    with compiles() as inside:
        pass
    fresh_function()(jnp.arange(6.0))
    assert inside.count == 0
