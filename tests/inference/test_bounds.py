"""Bounds from both sides contain the enumerated log evidence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import tiny_models as tiny

from feynkac import inference
from feynkac.inference import SMC
from feynkac.inference.bounds import bounds

KEY = jax.random.key(89)


@pytest.mark.slow
def test_both_sides_and_the_heuristic():
    exact = inference.exact.enumerate(tiny.text(tiny.MILD))
    log_probs = jnp.asarray(exact.log_probs, float)

    def draw(key):
        return jax.tree.map(lambda x: x[jax.random.categorical(key, log_probs)], exact.choices)

    smc = SMC(4, inference.Systematic(ess_threshold=0.8))
    result = bounds(KEY, smc, exact.target, draw, runs=4096)
    low, high = float(result.lower), float(result.upper)
    # The gap is many standard errors, so that each side is seen to be on its own.
    assert low + 4 * result.lower_error < exact.log_evidence < high - 4 * result.upper_error
    assert result.status and result.exact and "gap" in repr(result)
    # E[1 / Z-hat] = 1 / Z behind the upper side.
    inverse = np.exp(exact.log_evidence - np.asarray(result.reverse, np.float64))
    assert abs(inverse.mean() - 1) < 4 * inverse.std(ddof=1) / 64
    with pytest.raises(ValueError, match="at least two runs"):
        bounds(KEY, smc, exact.target, runs=1)


@pytest.mark.slow
def test_without_an_exact_draw_it_says_so():
    target = tiny.text(tiny.MILD)
    result = bounds(KEY, SMC(4), target, runs=64)
    assert not result.exact and "heuristic" in repr(result)
    assert float(result.gap) == float(result.upper) - float(result.lower)
    assert float(result.gap_error) > 0
    # A run that dies says that the lower side is -inf, and why.
    dead = bounds(KEY, SMC(1), tiny.text(tiny.HARSH, tiny.Ending(True)), runs=64)
    assert float(dead.lower) == -np.inf and not dead.status
