"""The mapping is a policy: the same numbers in blocks and over two devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import ending, hmm

from feynkac import inference, ppl

KEY = jax.random.key(0)
MESH = jax.make_mesh((2,), ("particles",), axis_types=(jax.sharding.AxisType.Auto,))
MAPPINGS = [inference.Chunked(4), inference.Sharded(MESH)]
OFTEN = inference.Systematic(ess_threshold=0.9)
PLAIN, DYADIC = hmm(6), ending(length=6)


def same(a, b):
    for name in ("ancestors", "resampled", "lengths", "position"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    for x, y in zip(jax.tree.leaves(a.choices), jax.tree.leaves(b.choices), strict=True):
        np.testing.assert_array_equal(x, y)
    np.testing.assert_allclose(a.log_weights, b.log_weights, atol=1e-4)
    np.testing.assert_allclose(a.log_evidence_history, b.log_evidence_history, atol=1e-4)


@pytest.fixture(scope="module")
def vmapped():
    return inference.SMC(8, OFTEN).run(KEY, DYADIC)


@pytest.mark.parametrize("mapping", MAPPINGS, ids=["chunked", "sharded"])
def test_equals_all_at_once(mapping, vmapped):
    assert bool(vmapped.resampled.any())
    same(vmapped, inference.SMC(8, OFTEN, mapping=mapping).run(KEY, DYADIC))


@pytest.mark.slow
def test_a_block_may_not_divide_the_population(vmapped):
    same(vmapped, inference.SMC(8, OFTEN, mapping=inference.Chunked(3)).run(KEY, DYADIC))


@pytest.mark.parametrize("mapping", MAPPINGS, ids=["chunked", "sharded"])
@pytest.mark.slow
def test_conditional_runs_with_a_mapping(mapping):
    retained = {"z": jnp.array([0, 0, 1, 1, 2, 2], jnp.int32)}
    plain = inference.SMC(8).run_conditional(KEY, PLAIN, retained)
    other = inference.SMC(8, mapping=mapping).run_conditional(KEY, PLAIN, retained)
    np.testing.assert_array_equal(other.choices["z"][int(other.position)], retained["z"])
    same(plain, other)


@pytest.mark.slow
@pytest.mark.parametrize("mapping", MAPPINGS, ids=["chunked", "sharded"])
def test_kernels_with_a_mapping(mapping):
    kernel = inference.MH(ppl.select("z"))
    plain = inference.SMC(8, kernel=kernel).run(KEY, PLAIN)
    same(plain, inference.SMC(8, kernel=kernel, mapping=mapping).run(KEY, PLAIN))


def test_the_particle_axis_is_spread_over_the_devices():
    from feynkac.inference.smc import _run

    smc = inference.SMC(8, mapping=inference.Sharded(MESH))
    compiled = _run.lower(smc, KEY, PLAIN, None).compile()
    text = compiled.as_text()
    assert any(op in text for op in ("all-gather", "all-reduce", "collective-permute"))
    # Half of the eight states on each device.
    assert "s32[4]" in text
    particles = smc.run(KEY, PLAIN)
    assert len(particles.log_weights.sharding.device_set) == 2


def test_particles_that_do_not_divide():
    with pytest.raises(ValueError, match="7 particles do not divide over 2 devices"):
        inference.SMC(7, mapping=inference.Sharded(MESH)).run(KEY, PLAIN)


def test_unknown_axis_and_empty_block():
    with pytest.raises(ValueError, match="name one with axis="):
        inference.Sharded(MESH, "rows")
    with pytest.raises(ValueError, match="at least 1"):
        inference.Chunked(0)
