"""A run lowers for GPU and TPU, and never calls back to the host."""

import re

import jax
import jax.export
import pytest
from small_models import ending, hmm

from feynkac import inference, models

CALLBACK = r"custom_call @\w*callback"


def writing():
    lm = models.language.random_llama(jax.random.key(0), 64, layers=2)
    return models.generation(lm, [1, 2, 3], 4)


TARGETS = {"fixed": lambda: hmm(4), "ending": lambda: ending(length=4), "writing": writing}


@pytest.mark.parametrize("make", TARGETS.values(), ids=TARGETS.keys())
def test_lowers_for_gpu_and_tpu_without_callbacks(make):
    smc, target = inference.SMC(4), make()

    def run(data, target):
        particles = smc.run(jax.random.wrap_key_data(data), target)
        return particles.log_weights, particles.choices, particles.ancestors

    leaves, structure = jax.tree.flatten(target)
    data = jax.random.key_data(jax.random.key(0))
    flat = jax.jit(lambda data, *leaves: run(data, structure.unflatten(leaves)))
    exported = jax.export.export(flat, platforms=("tpu", "cuda"))(data, *leaves)
    assert exported.platforms == ("tpu", "cuda")
    assert not re.search(CALLBACK, exported.mlir_module())


def test_the_check_would_see_a_callback():
    def f(x):
        return jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct((), "float32"), x)

    text = jax.jit(f).lower(jax.ShapeDtypeStruct((), "float32")).as_text()
    assert re.search(CALLBACK, text)
