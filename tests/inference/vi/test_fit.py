"""`vi.fit`: ascent, resumption to the same bytes, early stopping, the guard against NaN."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from compile_count import compiles

from feynkac.inference import CheckpointError, InferenceError, vi
from feynkac.inference.vi.fit import fit, rows

DATA = jnp.asarray(np.random.default_rng(0).normal(1.5, 1.0, 64), dtype=float)


def noisy(key, params, data):
    """Value and gradient of a concave objective, its mean over data, with noise."""

    def value(params):
        loss = jnp.mean((params["a"] - data) ** 2) + jnp.sum(params["b"] ** 2)
        return -loss + 0.1 * jax.random.normal(key) * params["a"]

    return jax.value_and_grad(value)(params)


def start():
    return {"a": jnp.zeros(()), "b": jnp.ones(2)}


def run(steps=60, estimator=noisy, params=None, **options):
    options = {"every": 20, "progress": False, "optimizer": optax.adam(0.1)} | options
    return fit(jax.random.key(3), estimator, params or start(), (DATA,), steps=steps, **options)


def same(one, two):
    return all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    )


@pytest.fixture(scope="module")
def whole():
    return run()


def test_ascends_and_reports(whole):
    seen = []
    again = run(callback=seen.append, progress=True)
    assert same(again, whole)
    assert abs(whole.params["a"] - DATA.mean()) < 0.2 and whole.params["b"].shape == (2,)
    assert bool(whole.status) and whole.values.shape == (60,)
    assert [r.step for r in seen] == [20, 40, 60] and seen[-1].best == float(whole.best_value)
    assert np.isclose(seen[1].value, whole.values[20:40].mean(), rtol=1e-5)


def test_new_numbers_compile_nothing(whole):
    found = []
    for seed, every, data in ((0, 5, DATA), (1, 5, DATA + 1.0)):
        with compiles() as seen:
            made = fit(
                jax.random.key(seed), noisy, start(), (data,), steps=5, every=every,
                optimizer=optax.adam(0.1), progress=False,
            )  # fmt: skip
        found.append([name for name in seen.names if "_advance" in name])
        assert bool(made.status)
    assert len(found[0]) == 1 and not found[1]


def test_interrupted_and_resumed_is_uninterrupted_bit_for_bit(whole, tmp_path):
    class Killed(Exception):
        pass

    def kill(report):
        if report.step == 40:
            raise Killed

    with pytest.raises(Killed):
        run(checkpoint=tmp_path, callback=kill)
    # A newest checkpoint that was cut short is passed over.
    newest = max((p for p in tmp_path.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    files = [p for p in newest.rglob("*") if p.is_file() and "manifest" not in str(p)]
    max(files, key=lambda p: p.stat().st_size).write_bytes(b"cut")
    with pytest.warns(UserWarning, match="looking for the one before"):
        resumed = run(checkpoint=tmp_path)
    assert same(resumed, whole)
    longer = run(steps=80, checkpoint=tmp_path)
    assert same(longer, run(steps=80)) and np.array_equal(longer.values[:60], whole.values)
    with pytest.raises(CheckpointError, match="optimizer"):
        run(checkpoint=tmp_path, optimizer=optax.adam(0.2))


def test_state_goes_on_and_uneven_chunks_agree(whole):
    half = run(steps=30)
    rest = run(steps=30, state=half.state)
    assert same(rest.params, whole.params) and same(half.params, run(steps=30, every=7).params)
    assert np.array_equal(np.concatenate([half.values, rest.values]), whole.values)


def test_a_step_that_is_not_finite_is_not_taken():
    def breaks(key, params, data):
        value, grads = noisy(key, params, data)
        count = params["count"]
        grads = {**grads, "count": jnp.ones(())}
        grads["b"] = jnp.where(count > 10.5, jnp.nan, grads["b"])
        return value, grads

    params = {**start(), "count": jnp.zeros(())}
    # `count` grows by 1 a step: at step 11 the gradient of "b" is NaN, and ever after.
    options = {"params": params, "optimizer": optax.sgd(1.0), "estimator": breaks}
    good = run(steps=11, every=11, **options)
    bad = run(**options)
    assert same(bad.params, good.params) and not bad.status
    assert (int(bad.status.step), int(bad.status.skipped)) == (11, 29)
    assert "params['b']" in bad.status.message and "step 11" in bad.status.message
    assert len(bad.values) == 40  # a chunk in which nothing was taken ends the training
    with pytest.raises(InferenceError, match="step 11"):
        run(throw=True, **options)


def test_a_value_that_is_not_finite_now_and_then_is_passed_over():
    def sometimes(key, params, data):
        value, grads = noisy(key, params, data)
        return jnp.where(jax.random.uniform(key) < 0.2, -jnp.inf, value), grads

    found = run(estimator=sometimes)
    gone = ~np.isfinite(found.values)
    assert 0 < gone.sum() < 30 and int(found.status.skipped) == gone.sum()
    assert int(found.status.step) == int(np.argmax(gone))
    assert found.status.message.startswith("the objective was not finite")
    assert abs(found.params["a"] - DATA.mean()) < 0.3


def test_early_stopping_keeps_the_best():
    def falls(key, params, data):
        value = -((params["a"] - 1.0) ** 2)
        return value, {"a": jnp.ones(())}  # goes past the maximum

    found = run(
        steps=200, estimator=falls, params={"a": jnp.zeros(())}, optimizer=optax.sgd(0.02),
        every=10, patience=30,
    )  # fmt: skip
    assert len(found.values) == 90  # the best chunk ends at 60
    assert np.isclose(found.best["a"], 1.2, atol=1e-5) and found.params["a"] > 1.7
    assert bool(found.status)


def test_only_what_is_named_is_trained_and_batches_are_rows():
    net = eqx.nn.MLP(1, 1, 4, 1, key=jax.random.key(0))

    def estimator(key, net, x, y):
        assert x.shape == (8, 1)
        return eqx.filter_value_and_grad(lambda n: -jnp.mean((jax.vmap(n)(x) - y) ** 2))(net)

    x = jnp.linspace(-1.0, 1.0, 32)[:, None]
    last = eqx.tree_at(lambda n: n.layers[1], jax.tree.map(lambda _: False, net), replace=True)
    found = fit(
        jax.random.key(0), estimator, net, (x, 2.0 * x), steps=40, every=40, progress=False,
        optimizer=optax.adam(0.05), batches=rows(8), trainable=last,
    )  # fmt: skip
    assert same(found.params.layers[0], net.layers[0])
    assert not same(found.params.layers[1], net.layers[1])
    assert found.values[-10:].mean() > 0.6 * found.values[:10].mean()
    assert isinstance(found.params(x[0]), jax.Array)


def test_bad_input_says_what_to_do():
    with pytest.raises(ValueError, match="nothing to train"):
        run(params={"a": jnp.zeros((), jnp.int32)})
    with pytest.raises(ValueError, match=r"params\['b'\] has none"):
        run(estimator=lambda key, p, data: (jnp.zeros(()), {"a": p["a"]}))
    with pytest.raises(ValueError, match="decorate the objective"):
        run(samples=3)
    with pytest.raises(TypeError, match="tuple"):
        run(batches=lambda key, data: data)


def test_an_objective_carries_its_running_baseline():
    @vi.objective
    def heads(ctx, logits):
        x, _ = ctx.draw("x", dist.Bernoulli(logits=logits))
        return 5.0 + x.astype(float)

    options = {"strategies": {"x": vi.Score(vi.Running())}, "progress": False, "every": 20}
    options |= {"optimizer": optax.sgd(0.5)}
    found = fit(jax.random.key(1), heads, jnp.zeros(()), steps=40, **options)
    # The carried mean is that of the values, weighted down by 0.9 a step.
    decay = 0.9 ** np.arange(40)[::-1]
    (baseline,) = [
        x
        for x in jax.tree.leaves(found.state.baseline, is_leaf=lambda x: isinstance(x, vi.Running))
        if isinstance(x, vi.Running)
    ]
    np.testing.assert_allclose(baseline.mean, np.sum(decay * found.values) / decay.sum(), rtol=1e-4)
    half = fit(jax.random.key(1), heads, jnp.zeros(()), steps=20, **options)
    rest = fit(jax.random.key(1), heads, jnp.zeros(()), steps=20, state=half.state, **options)
    assert same(rest.params, found.params) and found.params > 0
