"""Resamplers against exact enumeration, and at the edges of floating point."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compile_count import compiles
from compiling import OPTIMIZED
from oracles import resampling as oracle

from feynkac.inference.resampling import (
    SSP,
    Killing,
    Multinomial,
    Residual,
    Stratified,
    Systematic,
    cdf,
    effective_sample_size,
    is_dead,
)

ALL = [Multinomial(), Stratified(), Systematic(), Residual(), SSP(), Killing()]
LAWS = {
    Multinomial: oracle.multinomial,
    Stratified: oracle.stratified,
    Systematic: oracle.systematic,
    Residual: oracle.residual,
    SSP: oracle.ssp,
    Killing: oracle.killing,
}
# Offspring expected: below, at and above one; zeros first, inside and last. No n W is an integer
# up to rounding, where the order of the slots of `Residual` would jump.
WEIGHTS = [
    (1, 2, 3, 4),
    (5, 0, 4, 2),
    (0, 0, 7, 3),
    (2, 90, 5, 3),
    (1, 1, 1, 1),
    (3, 3, 1, 0),
    (0, 1, 0, 0),
    (9, 1, 1, 9),
]
RUNS = 20_000

each_resampler = pytest.mark.parametrize("resampler", ALL, ids=lambda r: type(r).__name__)


def log(weights):
    with np.errstate(divide="ignore"):
        return jnp.asarray(np.log(np.asarray(weights, float)), dtype=float)


def keys(seed, n):
    return jax.random.split(jax.random.key(seed), n)


def misfit(draws, law):
    """z-score of the chi-square of draws (rows) against a law; infinite if one is impossible."""
    rows, counts = np.unique(np.asarray(draws), axis=0, return_counts=True)
    seen = dict(zip(map(tuple, rows.tolist()), counts.tolist(), strict=True))
    if any(row not in law for row in seen):
        return np.inf
    expected = np.array([float(p) for p in law.values()]) * len(draws)
    observed = np.array([seen.get(row, 0) for row in law], float)
    order = np.argsort(expected)  # the rarest cells are pooled, with one more to reach 5
    pooled = min(int(np.searchsorted(np.cumsum(expected[order]), 5)) + 1, len(order))
    expected = np.append(expected[order[pooled:]], expected[order[:pooled]].sum())
    observed = np.append(observed[order[pooled:]], observed[order[:pooled]].sum())
    freedom = len(expected) - 1
    distance = np.sum((observed - expected) ** 2 / expected)
    if not freedom:
        return distance
    spread = 2 / (9 * freedom)  # Wilson and Hilferty's cube root: nearly normal at any freedom
    return (np.cbrt(distance / freedom) - 1 + spread) / np.sqrt(spread)


def joined(law):
    return {(*a, b): p for (a, b), p in law.items()}


def with_position(ancestors, position):
    return np.concatenate([ancestors, position[..., None]], -1)


@pytest.mark.x64
@each_resampler
def test_ancestors_and_conditional_ancestors_have_the_enumerated_law(resampler):
    weights = [oracle.normalized(w) for w in WEIGHTS]
    laws = [LAWS[type(resampler)](w) for w in weights]
    for w, law in zip(weights, laws, strict=True):  # the oracle's own law: a mean of n W
        for i in range(4):
            assert sum(p * a.count(i) for a, p in law.items()) == 4 * w[i]
    table = log(WEIGHTS)

    draw = jax.jit(jax.vmap(jax.vmap(resampler.ancestors, (0, None)), (None, 0)))
    draws = draw(keys(1, RUNS), table)
    assert draws.dtype == jnp.int32
    for a, law in zip(draws, laws, strict=True):
        assert misfit(a, law) < 4

    which, retained = np.nonzero(np.array(WEIGHTS))
    conditional = jax.vmap(jax.vmap(resampler.conditional, (0, None, None)), (None, 0, 0))
    ancestors, position = jax.jit(conditional)(
        keys(2, RUNS), table[which], jnp.asarray(retained, jnp.int32)
    )
    rows = with_position(np.asarray(ancestors), np.asarray(position))
    for row, k, b in zip(rows, which, retained, strict=True):
        law = oracle.conditional(laws[k], weights[k], b)
        assert sum(law.values()) == 1
        assert misfit(row, joined(law)) < 4


def test_the_law_check_rejects_a_bias_of_two_percent_and_a_naive_conditional_form():
    weights, law = (1, 2, 3, 4), oracle.systematic(oracle.normalized((1, 2, 3, 4)))
    biased = jax.jit(jax.vmap(Systematic().ancestors, (0, None)))
    assert misfit(biased(keys(3, 50_000), log((1.02 * 1, 2, 3, 4))), law) > 4

    def naive(key):  # draws unconditionally and puts the retained particle in a uniform slot
        a = Systematic().ancestors(key, log(weights))
        b = jax.random.randint(jax.random.fold_in(key, 1), (), 0, 4, "int32")
        return a.at[b].set(2), b

    rows = with_position(*map(np.asarray, jax.jit(jax.vmap(naive))(keys(4, 50_000))))
    given = oracle.conditional(law, oracle.normalized(weights), 2)
    assert misfit(rows, joined(given)) > 4


@pytest.mark.parametrize(("n", "runs"), [(1, 10), (12, 20_000), (1000, 1000), (5000, 200)])
@each_resampler
@pytest.mark.slow
def test_offspring_are_unbiased_and_conditional_forms_agree_with_size_bias(resampler, n, runs):
    rng = np.random.default_rng(n)
    weights = rng.exponential(size=n) ** 2 * (rng.uniform(size=n) < 0.7)
    weights[n // 2] = n / 10 + 1
    normalized = weights / weights.sum()
    table = log(weights)
    f = jnp.asarray(rng.normal(size=n), float)
    g = jnp.cos(jnp.linspace(0.0, 9.0, n))

    def run(key):
        a = resampler.ancestors(key, table)
        # A heavy particle, so that the size bias can be seen in few runs.
        b, slot = resampler.conditional(key, table, jnp.int32(n // 2))
        share = n * normalized[n // 2]
        mine = a == n // 2
        moment = jnp.sum(f[a])
        right = jnp.sum(jnp.where(mine, g, 0)) * moment
        left = g[slot] * jnp.sum(f[b]) * share
        ok = (b[slot] == n // 2) & jnp.all(table[a] > -jnp.inf) & jnp.all(table[b] > -jnp.inf)
        return moment, left - right, ok

    moment, difference, ok = jax.jit(jax.vmap(run))(keys(5, runs))
    assert ok.all()
    expected = float(n * np.sum(normalized * np.asarray(f)))
    for sample, mean in ((moment, expected), (difference, 0.0)):
        error = np.std(np.asarray(sample, float)) / runs**0.5 + 1e-4 * (1 + abs(mean))
        assert abs(np.mean(np.asarray(sample, float)) - mean) < 4 * error


ROUGH = [  # what a parallel prefix sum may return for weights (0, 3, 0, 0, 1, 2, 0, 0) / 6
    lambda exact: exact,
    lambda exact: exact * (1 - 1e-6),  # the last entry is below the total
    lambda exact: exact + 1e-6 * jnp.asarray([0, 1, 0, 2, 0, 1, -2, -1], float),  # not monotone
    lambda exact: exact + 1e-6 * jnp.asarray([1, 0, 1, -1, 1, 0, 3, 2], float),  # rises at zeros
]
EDGES = [0.0, 2.0**-23, 0.5, 0.5 - 2.0**-24, 2 / 3, 1 - 2.0**-23, 1 - 2.0**-24, 1.0]


def only_positive(invert, monkeypatch):
    """Whether an inverse CDF keeps to positive weights for rough sums and extreme uniforms."""
    weights = jnp.asarray([0, 3, 0, 0, 1, 2, 0, 0], float) / 6
    for rough in ROUGH:
        monkeypatch.setattr(cdf, "_prefix_sum", lambda w, rough=rough: rough(jnp.cumsum(w)))
        for scale in (1.0, 3.0, 1e-3):
            chosen = invert(weights * scale, jnp.asarray(EDGES, float))
            if not ((chosen >= 0) & (chosen < 8)).all() or not (weights[chosen] > 0).all():
                return False
    return True


def naive(weights, uniforms):
    sums = cdf._prefix_sum(weights / jnp.sum(weights))
    return jnp.clip(jnp.searchsorted(sums, uniforms), 0, 7)


def test_inverse_cdf_keeps_to_positive_weights_and_the_check_rejects_the_usual_one(monkeypatch):
    assert only_positive(lambda w, u: cdf.invert(cdf.scaled_cdf(w), u), monkeypatch)
    for u in EDGES:
        offsets = jnp.full(8, u)
        assert only_positive(
            lambda w, _, o=offsets: cdf.invert_strata(cdf.scaled_cdf(w), o), monkeypatch
        )
    assert not only_positive(naive, monkeypatch)


def test_scaled_cdf_is_monotone_flat_at_zero_weights_and_ends_at_n(monkeypatch):
    assert np.array_equal(cdf.scaled_cdf(jnp.ones(1000)), np.arange(1, 1001))
    weights = jnp.asarray([0, 3, 0, 0, 1, 2, 0, 0], float)
    for rough in ROUGH:
        monkeypatch.setattr(cdf, "_prefix_sum", lambda w, rough=rough: rough(jnp.cumsum(w)))
        c = cdf.scaled_cdf(weights)
        assert np.allclose(c, [0, 4, 4, 4, 16 / 3, 8, 8, 8], atol=1e-5)
        assert c[0] == 0 and c[1] == c[2] == c[3] and c[5] == c[6] == c[7] == 8
        assert (jnp.diff(c) >= 0).all()


@pytest.mark.slow
@each_resampler
def test_no_zero_weight_in_twenty_thousand_runs(resampler):
    n, half, chunk = 1024, 512, 200

    def count(key):
        key, fresh, which = jax.random.split(key, 3)
        table = jnp.where(jnp.arange(n) < half, jax.random.normal(fresh, (n,)), -jnp.inf)
        retained = jax.random.randint(which, (), 0, half, "int32")
        a = resampler.ancestors(key, table)
        b, slot = resampler.conditional(key, table, retained)
        bad = jnp.sum((a < 0) | (a >= half)) + jnp.sum((b < 0) | (b >= half))
        return bad, b[slot] == retained

    runs = jax.jit(lambda ks: jax.lax.map(count, ks, batch_size=chunk), compiler_options=OPTIMIZED)
    bad, kept = runs(keys(6, 20_000))
    assert bad.sum() == 0
    assert kept.all()


@pytest.mark.x64
@each_resampler
def test_degenerate_populations_are_left_alone(resampler):
    inf = jnp.inf
    table = jnp.asarray(
        [[-inf] * 4, [0.0, jnp.nan, 1.0, 2.0], [jnp.nan] * 4, [0.0, inf, 0.0, 0.0], [0, -inf, 0, 0]]
    )
    retained = jnp.asarray([0, 0, 0, 0, 1], jnp.int32)
    both = jax.jit(
        lambda key: (
            jax.vmap(resampler.ancestors, (None, 0))(key, table[:4]),
            jax.vmap(resampler.conditional, (None, 0, 0))(key, table, retained),
            jax.vmap(resampler.conditional, (None, None, 0))(
                key, jnp.zeros(4), jnp.asarray([-1, 4], jnp.int32)
            ),
        )
    )
    alone, (given, position), (outside, nowhere) = both(jax.random.key(0))
    for ancestors in (alone, given, outside):
        assert (ancestors == jnp.arange(4, dtype=jnp.int32)[None]).all()
    assert (position == -1).all() and (nowhere == -1).all()


@pytest.mark.x64
@each_resampler
def test_offsets_single_weights_and_weights_lost_in_rounding(resampler):
    steps = jnp.asarray([3, -64, 17, 5, 0, 40, -2, 1], float) / 64  # exact after adding 2^16
    lone = jnp.full(8, -jnp.inf).at[5].set(-1e30)

    @jax.jit
    def run(key):
        return (
            resampler.ancestors(key, steps),
            resampler.ancestors(key, steps + 2.0**16),
            resampler.ancestors(key, lone),
            resampler.conditional(key, jnp.zeros(8).at[3].set(-80.0), jnp.int32(3)),
            resampler.ancestors(key, jnp.full(8, -1e30)),
        )

    plain, moved, single, (ancestors, position), equal = jax.vmap(run)(keys(7, 200))
    assert (plain == moved).all()
    assert (single == 5).all()
    assert (jnp.take_along_axis(ancestors, position[:, None], 1) == 3).all()
    assert ((ancestors == 3).sum(1) == 1).all()
    if not isinstance(resampler, Multinomial | Stratified):
        assert (equal == jnp.arange(8, dtype=jnp.int32)[None]).all()


@each_resampler
@pytest.mark.slow
def test_jit_and_vmap_change_nothing(resampler):
    table = jnp.asarray(np.random.default_rng(0).normal(size=(3, 20)), float)
    ks, retained = keys(8, 3), jnp.asarray([0, 7, 19], jnp.int32)
    batch = jax.vmap(resampler.ancestors)(ks, table)
    slots = jax.vmap(resampler.conditional)(ks, table, retained)
    for i in range(3):
        assert (eqx.filter_jit(resampler.ancestors)(ks[i], table[i]) == batch[i]).all()
        assert (resampler.ancestors(ks[i], table[i]) == batch[i]).all()
        one = resampler.conditional(ks[i], table[i], retained[i])
        assert (one[0] == slots[0][i]).all() and one[1] == slots[1][i]


@pytest.mark.x64
def test_effective_sample_size_and_when_to_resample():
    w = np.array([0.1, 0.5, 0.0, 0.4])
    exact = w.sum() ** 2 / (w**2).sum()
    assert np.isclose(effective_sample_size(log(w)), exact, rtol=1e-6)
    assert np.isclose(effective_sample_size(log(w) + 1e3), exact, rtol=1e-3)
    assert effective_sample_size(jnp.full(5, -1e30)) == 5
    dead = jnp.full(4, -jnp.inf)
    assert effective_sample_size(dead) == 0 and is_dead(dead)
    for bad in (jnp.nan, jnp.inf):
        broken = log(w).at[1].set(bad)
        assert jnp.isnan(effective_sample_size(broken)) and not is_dead(broken)
        assert not SSP(ess_threshold=1.0).needed(broken)
    assert not is_dead(log(w))
    for threshold, needed in ((0.0, False), (exact / 4 - 0.01, False), (exact / 4 + 0.01, True)):
        assert Systematic(ess_threshold=threshold).needed(log(w)) == needed
    assert not Systematic(ess_threshold=1.0).needed(dead)
    assert not Systematic(ess_threshold=1.0).needed(jnp.full(1000, -0.1))
    assert Systematic(ess_threshold=1.0).needed(jnp.zeros(1000).at[3].set(0.1))
    # Single-precision weights in a double-precision program.
    assert SSP().needed(jnp.asarray([0.0, -9.0, -9.0, -9.0], "float32"))


def test_gradients_pass_by_and_a_new_threshold_compiles_nothing():
    grad = jax.grad(lambda x: jnp.sum(x[SSP().ancestors(jax.random.key(0), x)]))
    assert grad(jnp.zeros(4)).sum() == 4
    assert [f.dtype for f in jax.tree.leaves(ALL)] == [jnp.asarray(0.5, dtype=float).dtype] * 6
    needed = eqx.filter_jit(lambda r, x: r.needed(x))
    table, first, second = log((1, 2, 3, 4)), Killing(ess_threshold=0.1), Killing(ess_threshold=0.9)
    assert not needed(first, table)
    with compiles() as count:
        result = needed(second, table)
    assert count.count == 0 and result
