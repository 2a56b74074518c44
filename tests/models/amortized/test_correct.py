"""Corrected answers: proper weighting by z-score whatever the network is, and the way out."""

import jax
import numpy as np

from feynkac import inference
from feynkac.models.amortized.correct import correct

from .corrected import KEY, LOG_Z, MEAN, TARGET, VARIANCE, estimates, network, z_scores


def test_weights_are_proper_where_some_pilots_fail():
    """A network off and too wide, whose pilots have about the least size: half fall back."""
    bad, rows, fell = network(0.0, 0.8), [], []
    prior = inference.Importance(60)
    for key in jax.random.split(KEY, 120):
        run = correct(key, bad, TARGET, 60, pilot=60, least=0.4, fallback=prior)
        rows.append(estimates(run))
        fell.append(run.fell_back)
        assert run.fell_back == (not run.pilot.ok or run.pilot_ess < 0.4)
    assert 10 < sum(fell) < 110, sum(fell)
    assert np.abs(z_scores(rows)).max() < 4, z_scores(rows)


def test_a_good_network_is_used_and_says_so():
    run = correct(KEY, network(MEAN, 1.1 * np.sqrt(VARIANCE)), TARGET, 400, defensive=0.1)
    assert not run.fell_back and run.inside and run.status
    assert "by the network" in run.status.message
    assert run.ess > 0.8 * 400
    assert abs(run.log_evidence - LOG_Z) < 0.05
    # Weights of the mixture are bounded by the likelihood over the share.
    top = -0.5 * np.log(2 * np.pi * 0.25) - np.log(0.1)
    assert run.log_weights.max() <= top + 1e-5
