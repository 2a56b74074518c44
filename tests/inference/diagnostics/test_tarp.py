"""TARP and SBC pass what is exact and reject planted defects, seed after seed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac import inference
from feynkac.inference.diagnostics import gamma_test, report, tarp

from .conjugate import DEFECTS, Estimator, pair

KEY = jax.random.key(71)


def run(estimator, runs=500, key=KEY, **options):
    return tarp(key, pair, estimator, ["y"], runs, batch=runs, **options)


def test_exact_passes_and_defects_do_not():
    exact = run(Estimator()).check()
    assert exact.draws == 99 and exact.failed == 0 and list(exact.ranks)[0] == "centre"
    # y = x + noise tells 0.8 of the variance of x.
    assert abs(exact.explained - 0.8) < 0.08
    levels = np.linspace(0.1, 0.9, 9)
    band = 4 * np.sqrt(levels * (1 - levels) / 500)
    assert (np.abs(exact.coverage(levels) - levels) < band).all()
    for name, defect in DEFECTS.items():
        result = run(defect)
        assert result.p_value < 1e-3, name
        with pytest.raises(AssertionError, match="mean fraction"):
            result.check()


def test_references_apart_from_the_data_cannot_see_the_prior():
    """Why they depend on the data: against one fixed point the prior passes."""

    def fixed(key, data):
        return {"x": jnp.array([0.7, -0.4])}

    blind = run(DEFECTS["prior only"], reference=fixed)
    assert blind.p_value > 0.01 and np.isnan(blind.explained)

    def near(key, data):
        return {"x": data["y"] + 0.1 * jax.random.normal(key, (2,))}

    assert run(DEFECTS["prior only"], reference=near).p_value < 1e-6
    assert run(Estimator(), reference=near).p_value > 0.01


def test_data_that_tell_nothing_are_told_of():
    result = dataclasses.replace(run(Estimator(), runs=50), explained=0.01)
    assert "would not notice" in result.report()


def test_the_gamma_test_is_calibrated_and_sees_a_shift():
    generator = np.random.default_rng(0)
    p = [gamma_test(generator.integers(0, 100, 500), 99) for _ in range(300)]
    # Counts of p below a level are binomial.
    for level in (0.05, 0.2, 0.5):
        z = (np.mean(np.array(p) < level) - level) / np.sqrt(level * (1 - level) / 300)
        assert abs(z) < 4
    shifted = np.clip(generator.integers(0, 100, 500) + 8, 0, 99)
    assert gamma_test(shifted, 99) < 1e-4


@pytest.mark.slow
def test_power_over_a_hundred_seeds():
    """At 500 simulations: exact passes in 97 of 100, each defect is rejected in 95 of 100."""

    def seeds(estimator):
        """Two hundred sets of ranks would be two runs of the check each: here they are one."""
        whole = report(KEY, pair, estimator, ["y"], 50_000, batch=50_000)
        parts = [slice(500 * i, 500 * i + 500) for i in range(100)]
        checks = []
        for check in (whole.calibration, whole.tarp):
            cut = [{n: r[part] for n, r in check.ranks.items()} for part in parts]
            checks.append(np.array([dataclasses.replace(check, ranks=c).p_value for c in cut]))
        return checks

    sbc, balls = seeds(Estimator())
    assert (sbc > 0.01).sum() >= 97 and (balls > 0.01).sum() >= 97
    for name, defect in DEFECTS.items():
        for p in seeds(defect):
            assert (p < 0.01).sum() >= 95, name


@pytest.mark.slow
def test_of_a_population():
    good = tarp(KEY, pair, inference.Importance(2000), ["y"], 300, draws=19)
    good.check()
