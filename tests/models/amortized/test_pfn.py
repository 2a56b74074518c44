"""Prior-data fitted networks: invariances, one compilation, flags, a gap to the exact answer."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from compile_count import compiles

from feynkac import ppl
from feynkac.models.amortized import PFN, Bars, Labels, Riemann, log_masses, priors
from feynkac.models.learned import ArtifactError

FAMILY = priors.LinearRegression(2)
SMALL = {"context": 6, "width": 16, "layers": 2, "heads": 2, "draws": 256}


def noisy(pfn, key):
    """The PFN with random numbers in place of the zeros that its output layers start from."""
    leaves, structure = jax.tree.flatten(pfn.net)
    keys = jax.random.split(key, len(leaves))
    leaves = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return pfn.with_net(jax.tree.unflatten(structure, leaves))


@pytest.fixture(scope="module")
def pfn():
    made = PFN(FAMILY.program(10), head=Riemann(50), key=jax.random.key(0), **SMALL)
    return noisy(made, jax.random.key(1))


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x, y, queries = rng.normal(size=(4, 2)), rng.normal(size=4), rng.normal(size=(3, 2))
    return tuple(jnp.asarray(v, float) for v in (x, y, queries))


@pytest.mark.x64
def test_the_order_of_the_context_does_not_matter_but_the_context_does(pfn, data):
    x, y, queries = data
    law = pfn.condition(x, y).predict(queries)
    other = pfn.condition(x[::-1], y[::-1]).predict(queries)
    np.testing.assert_allclose(law.log_probs, other.log_probs, rtol=3e-6, atol=2e-5)
    swapped = pfn.condition(x, y[::-1]).predict(queries)
    assert jnp.abs(law.log_probs - swapped.log_probs).max() > 0.01


def test_one_compilation_serves_every_length_and_masked_is_shorter(pfn, data):
    x, y, queries = data
    pfn.condition(x, y).predict(queries)
    laws, parts = [], [(np.asarray(x)[:n], np.asarray(y)[:n]) for n in (1, 2, 3, 4)]
    with compiles() as compiled:
        for part in parts:
            laws.append(pfn.condition(*part).predict(queries))
    assert compiled.count == 0, compiled.names
    junk = jnp.full((2, 2), jnp.nan)
    for n in (1, 3):
        padded = pfn.answer(
            pfn.net,
            jnp.concatenate([x[:n], junk]),
            jnp.concatenate([y[:n], junk[0]]),
            jnp.array(n),
            queries,
        )
        np.testing.assert_allclose(laws[n - 1].log_probs, padded.log_probs, rtol=3e-6, atol=2e-5)
    empty = pfn.condition(jnp.zeros((0, 2)), jnp.zeros(0)).predict(queries)
    assert jnp.isfinite(empty.log_probs).all()


def test_queries_do_not_see_each_other_and_the_cache_is_the_network(pfn, data):
    x, y, queries = data
    posterior = pfn.condition(x, y)
    together = posterior.predict(queries).log_probs
    alone = jnp.concatenate([posterior.predict(q[None]).log_probs for q in queries])
    np.testing.assert_allclose(together, alone, rtol=3e-6, atol=2e-5)
    uncached = pfn.answer(pfn.net, x, y, jnp.array(4), queries)
    np.testing.assert_allclose(together, uncached.log_probs, rtol=3e-6, atol=2e-5)


def test_a_batch_of_data_sets_is_each_of_them(pfn, data):
    x, y, queries = data
    xs, ys, qs = jnp.stack([x, x + 1]), jnp.stack([y, -y]), jnp.stack([queries, queries])
    both = pfn.answer(pfn.net, xs, ys, jnp.array([2, 4]), qs)
    second = pfn.answer(pfn.net, x + 1, -y, jnp.array(4), queries)
    np.testing.assert_allclose(both.log_probs[1], second.log_probs, rtol=3e-6, atol=2e-5)


def test_answers_outside_of_what_was_trained_are_flagged(pfn, data):
    x, y, queries = data
    assert pfn.condition(x, y).predict(queries).valid.all()
    far = queries.at[1, 0].set(100.0)
    assert pfn.condition(x, y).predict(far).valid.tolist() == [True, False, True]
    for bad_x, bad_y in (
        (x.at[0, 0].set(50.0), y),
        (x, y.at[2].set(1e4)),
        (x, y.at[0].set(jnp.nan)),
    ):
        assert not pfn.condition(bad_x, bad_y).predict(queries).valid.any()
    long = pfn.condition(jnp.zeros((7, 2)), jnp.zeros(7)).predict(queries)
    assert not long.valid.any() and jnp.isfinite(long.log_probs).all()
    assert pfn.validity["n"] == [0, 6]
    assert len(pfn.validity["x"]) == 2 and len(pfn.validity["y"]) == 2


def test_errors_say_what_to_do(pfn, data):
    x, y, queries = data
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"x \[n, 2\]"):
        pfn.condition(x[:, :1], y)
    with pytest.raises(ValueError, match="head of labels"):
        pfn.condition(x, jnp.zeros(4, int))
    with pytest.raises(ValueError, match="queries are"):
        pfn.condition(x, y).predict(queries[0])
    with pytest.raises(ValueError, match="beyond the context"):
        PFN(FAMILY.program(6), key=key, **SMALL)

    @ppl.program
    def other(ctx):
        ctx.sample("x", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="sites x and y"):
        PFN(other, key=key, **SMALL)


def test_saved_and_loaded_is_the_same(pfn, data, tmp_path):
    x, y, queries = data
    pfn.save(tmp_path / "net.safetensors", prior="ridge")
    fresh = PFN(FAMILY.program(10), head=Riemann(50), key=jax.random.key(9), **SMALL)
    same = fresh.load(tmp_path / "net.safetensors")
    np.testing.assert_array_equal(
        same.condition(x, y).predict(queries).log_probs,
        pfn.condition(x, y).predict(queries).log_probs,
    )
    wide = PFN(FAMILY.program(10), head=Riemann(50), key=jax.random.key(9), **SMALL | {"width": 8})
    with pytest.raises(ArtifactError, match="has shape"):
        wide.load(tmp_path / "net.safetensors")


def paired(pfn, family, key, sets, points):
    """Gap to the exact predictive in nats, one number a data set."""

    @jax.jit
    def gaps(pfn, key):
        choices = jax.vmap(lambda k: family.program(points).simulate(k).choices)(
            jax.random.split(key, sets)
        )
        c = pfn.context
        x, y, q, z = (choices[s][:, p] for p in (slice(c), slice(c, None)) for s in "xy")
        n = jnp.arange(sets) % (c + 1)
        law = pfn.answer(pfn.net, x, y, n, q)

        def exact(x, y, q, z, mask):
            law = family.predictive(x, y, q, mask)
            normal = (law.loc, law.scale) if isinstance(law, dist.Normal) else None
            return law.log_prob(z), normal

        score, normal = jax.vmap(exact)(x, y, q, z, jnp.arange(c)[None] < n[:, None])
        floor = jnp.zeros(())
        if normal is not None:
            best = Bars(pfn.head.borders, log_masses(*normal, pfn.head.borders))
            floor = jnp.mean(score - best.log_prob(z))
        return jnp.mean(score - law.log_prob(z), axis=1), floor

    gap, floor = gaps(pfn, key)
    return np.asarray(gap, np.float64), float(floor)


def test_a_coin_is_learned():
    coin = priors.coin()
    pfn = PFN(coin.program(12), head=Labels(2), key=jax.random.key(0), **SMALL)
    pfn, fit = pfn.train(
        jax.random.key(1), 400, batch=28, learning_rate=5e-3, every=200, progress=False
    )
    assert fit.status.ok
    gap, _ = paired(pfn, coin, jax.random.key(2), 700, 12)
    error = gap.std(ddof=1) / np.sqrt(len(gap))
    assert gap.mean() + 2 * error < 0.03  # the prior alone is 0.08 off
    assert gap.mean() > -4 * error


@pytest.mark.slow
def test_a_small_network_comes_near_the_exact_process():
    process = priors.GaussianProcess(0.3)
    pfn = PFN(
        process.program(16),
        context=8,
        head=Riemann(200),
        key=jax.random.key(0),
        width=32,
        layers=2,
        heads=2,
        draws=1024,
    )
    pfn, fit = pfn.train(
        jax.random.key(1), 600, batch=45, learning_rate=4e-3, every=200, progress=False
    )
    assert fit.status.ok
    gap, floor = paired(pfn, process, jax.random.key(2), 900, 16)
    error = gap.std(ddof=1) / np.sqrt(len(gap))
    assert 0 < floor < 0.05
    assert gap.mean() + 2 * error < 0.3  # the prior alone is about 1 nat off
    assert gap.mean() > floor - 4 * error
