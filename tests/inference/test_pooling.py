"""The union of independent runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import tiny_models as tiny

from feynkac import inference, ppl
from feynkac.inference import SMC
from feynkac.ppl.status import DEAD

KEY = jax.random.key(13)
N, RUNS = 4, 3


@pytest.mark.slow
def test_union():
    smc, target = SMC(N, tiny.resampler(inference.SSP, 0.9)), tiny.text()
    parts = [smc.run(jax.random.fold_in(KEY, i), target) for i in range(RUNS)]
    pooled = inference.pool(*parts)
    z = np.mean([np.exp(p.log_evidence) for p in parts])
    np.testing.assert_allclose(np.exp(pooled.log_evidence), z, rtol=1e-5)
    log_w = np.asarray(pooled.log_weights, np.float64)
    np.testing.assert_allclose(pooled.log_evidence, np.log(np.exp(log_w).mean()), rtol=1e-5)
    np.testing.assert_allclose(pooled.log_evidence_history[-1], pooled.log_evidence, rtol=1e-5)
    np.testing.assert_allclose(pooled.ess_history[-1], pooled.ess, rtol=1e-5)

    def f(c):
        return c["token"]

    # The weights of the runs count: the mean by evidence, not the mean of the means.
    want = sum(np.exp(p.log_evidence) * np.asarray(p.expectation(f)) for p in parts) / (RUNS * z)
    np.testing.assert_allclose(pooled.expectation(f), want, rtol=1e-4)
    # Ancestors point into the union: lineages are those of the parts, shifted.
    lineage = np.concatenate([np.asarray(p.lineage()) + N * i for i, p in enumerate(parts)], axis=1)
    np.testing.assert_array_equal(pooled.lineage(), lineage)
    # A dead run counts as zero.
    dead = smc.run(KEY, tiny.text(jnp.full((3, 3), -jnp.inf)))
    assert int(dead.status.code) == DEAD
    both = inference.pool(parts[0], dead)
    np.testing.assert_allclose(both.log_evidence, parts[0].log_evidence - np.log(2), rtol=1e-5)
    assert both.status and inference.pool(dead, dead).status.code == DEAD
    np.testing.assert_allclose(both.ess, parts[0].ess, rtol=1e-5)
    np.testing.assert_allclose(both.expectation(f), parts[0].expectation(f), rtol=1e-5)


def test_misuse():
    with pytest.raises(ValueError, match="at least one"):
        inference.pool()


class Pooled(ppl.Algorithm):
    """Two filters as one algorithm."""

    smc: SMC

    def run(self, key, target):
        return inference.pool(*(self.smc.run(k, target) for k in jax.random.split(key)))

    def run_conditional(self, key, target, retained):
        raise NotImplementedError

    random_weighted = estimate_logpdf = run_conditional


def test_properly_weighted():
    smc = SMC(2, tiny.resampler(inference.Systematic, 1.0))
    ppl.laws.proper_weighting(KEY, Pooled(smc), tiny.text(), runs=2**13).check()
