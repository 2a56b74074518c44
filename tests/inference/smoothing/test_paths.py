"""The tree of paths holds the same paths as the full store, in less memory, and says when full."""

import jax
import numpy as np
import pytest
import small_models

from feynkac.inference import SMC, Multinomial, smoothing
from feynkac.inference.smoothing.failure import OVERFLOW

KEY = jax.random.key(103)


@pytest.mark.slow
def test_same_paths_in_less_memory():
    target = small_models.hmm(40)
    smc = SMC(16, Multinomial(ess_threshold=0.7))
    full = smc.run(KEY, target)
    tree = smoothing.stored_paths(KEY, smc, target, 200)
    assert tree.failure and tree.status
    np.testing.assert_array_equal(tree.choices["z"], full.choices["z"])
    np.testing.assert_allclose(tree.log_weights, full.log_weights, rtol=1e-6)
    lineage = np.asarray(full.lineage())
    alive = sum(len(np.unique(row)) for row in lineage)
    assert alive <= tree.most <= 200


@pytest.mark.slow
def test_overflow_and_early_ends():
    target = small_models.hmm(40)
    smc = SMC(16, Multinomial(ess_threshold=0.7))
    tree = smoothing.stored_paths(KEY, smc, target, 40)
    assert tree.failure.code == OVERFLOW and tree.status
    ending = small_models.ending()
    full = smc.run(KEY, ending)
    tree = smoothing.stored_paths(KEY, smc, ending, 208)
    assert tree.failure
    for name in ("x", "end"):
        np.testing.assert_array_equal(tree.choices[name], full.choices[name])
    with pytest.raises(ValueError, match="at least the number of particles"):
        smoothing.stored_paths(KEY, smc, target, 8)
