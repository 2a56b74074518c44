"""Corrected answers of a network that is far off: the fallback from the prior, and finetuning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac.inference import vi
from feynkac.models.amortized.correct import correct
from feynkac.models.amortized.finetune import finetune

from .corrected import KEY, LOG_Z, TARGET, estimates, network, z_scores


@pytest.mark.slow
def test_a_bad_network_falls_back_to_the_prior():
    """Far off and narrow: tempered SMC answers, properly weighted, and the status says why."""
    bad, rows = network(-3.0, 0.1), []
    for key in jax.random.split(KEY, 30):
        run = correct(key, bad, TARGET, 40, pilot=100)
        assert run.fell_back
        rows.append(estimates(run))
    assert "by the fallback Tempered, because" in run.status.message
    assert run.status and not run.pilot.ok or run.pilot_ess < 0.05
    assert np.abs(z_scores(rows)).max() < 4, z_scores(rows)


@pytest.mark.slow
def test_a_few_steps_at_one_target_make_a_guide_better():
    """From a posterior of other data: finetuned, the effective sample size is near the draws."""
    start = vi.guides.mean_field(TARGET, scale=1.0, init={"m": jnp.asarray(-0.3)})
    fit = finetune(KEY, start, TARGET, steps=150, particles=128, learning_rate=0.05, progress=False)
    before = correct(KEY, start, TARGET, 400)
    after = correct(KEY, fit.params, TARGET, 400)
    assert after.pilot_ess > 0.95 > before.pilot_ess + 0.2
    assert abs(after.log_evidence - LOG_Z) < 0.05
