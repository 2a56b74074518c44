import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac.models.finite import BayesNet


def log(p):
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(p, dtype=float))


def sprinkler():
    """Rain and sprinkler wet the grass; dry weather and a dry sprinkler never do."""
    return BayesNet(
        ("rain", "sprinkler", "wet"),
        ((), ("rain",), ("sprinkler", "rain")),
        (
            log([0.8, 0.2]),
            log([[0.6, 0.4], [0.99, 0.01]]),
            log([[[1.0, 0.0], [0.2, 0.8]], [[0.1, 0.9], [0.01, 0.99]]]),
        ),
    )


def random_net(key=0):
    """Seven nodes of two to four values, with shared parents, a loop and zeros."""
    names = tuple("abcdefg")
    parents = ((), ("a",), ("a",), ("c", "b"), (), ("e", "a", "d"), ("f",))
    sizes = dict(zip(names, (2, 3, 4, 2, 3, 2, 3), strict=True))
    rng = np.random.default_rng(key)
    tables = []
    for name, above in zip(names, parents, strict=True):
        p = rng.dirichlet(np.ones(sizes[name]), size=[sizes[q] for q in above])
        p = np.where(p < 0.05, 0.0, p)
        tables.append(log(p / p.sum(-1, keepdims=True)))
    return BayesNet(names, parents, tables)


def joint_table(net):
    """The joint law as one dense numpy array, an axis a node."""
    sizes = [net.sizes[n] for n in net.names]
    table = np.zeros(sizes)
    for values in itertools.product(*(range(s) for s in sizes)):
        by_name = dict(zip(net.names, values, strict=True))
        table[values] = np.prod(
            [
                np.exp(np.asarray(t, dtype=float))[(*(by_name[p] for p in above), by_name[name])]
                for name, above, t in zip(net.names, net.parents, net.log_tables, strict=True)
            ]
        )
    return table


def test_sprinkler_matches_hand_computation():
    net = sprinkler()
    # p(rain, wet) = 0.2 (0.99 * 0.8 + 0.01 * 0.99), p(dry, wet) = 0.8 * 0.4 * 0.9
    rain, dry = 0.2 * (0.99 * 0.8 + 0.01 * 0.99), 0.8 * 0.4 * 0.9
    np.testing.assert_allclose(jnp.exp(net.log_evidence({"wet": 1})), rain + dry, rtol=1e-5)
    np.testing.assert_allclose(
        net.posterior(("rain",), {"wet": 1}), [dry / (rain + dry), rain / (rain + dry)], rtol=1e-5
    )
    assert net.log_joint({"rain": 0, "sprinkler": 0, "wet": 1}) == -jnp.inf


@pytest.mark.slow
def test_elimination_matches_the_dense_joint():
    net = random_net()
    table = joint_table(net)
    np.testing.assert_allclose(table.sum(), 1.0, rtol=1e-5)
    given = {"d": 1, "g": 2}
    restricted = table[:, :, :, 1, :, :, 2]
    evidence, marginal, posterior = jax.jit(
        lambda n, g: (
            n.log_evidence(g),
            n.log_marginal(("e", "b"), g),
            n.posterior(("e", "b"), g),
        )
    )(net, {k: jnp.asarray(v) for k, v in given.items()})
    expected = restricted.sum((0, 2, 4)).T
    np.testing.assert_allclose(jnp.exp(evidence), restricted.sum(), rtol=1e-5)
    np.testing.assert_allclose(jnp.exp(marginal), expected, atol=1e-6)
    np.testing.assert_allclose(posterior, expected / restricted.sum(), atol=1e-6)
    np.testing.assert_allclose(jnp.exp(net.log_marginal(net.names)), table, atol=1e-6)
    np.testing.assert_allclose(net.log_evidence({}), 0.0, atol=1e-5)


def test_log_joint_over_all_assignments():
    net = random_net(1)
    table = joint_table(net)
    values = np.stack(np.unravel_index(np.arange(table.size), table.shape), axis=1)
    log_p = jax.jit(
        jax.vmap(lambda row: net.log_joint({n: row[i] for i, n in enumerate(net.names)}))
    )(jnp.asarray(values))
    np.testing.assert_allclose(jnp.exp(log_p), table.reshape(-1), atol=1e-6)


@pytest.mark.slow
def test_posterior_samples_follow_the_dense_joint():
    net = random_net()
    given = {"g": 2}
    law = joint_table(net)[..., 2]
    law = law / law.sum()
    runs = 20_000
    draws = jax.jit(jax.vmap(lambda k: net.posterior_sample(k, given)))(
        jax.random.split(jax.random.key(0), runs)
    )
    assert jnp.all(draws["g"] == 2)
    stacked = [np.asarray(draws[n]) for n in net.names[:-1]]
    counts = np.bincount(np.ravel_multi_index(stacked, law.shape), minlength=law.size)
    law = law.reshape(-1)
    assert counts[law == 0].sum() == 0
    common = runs * law > 20
    z = (counts - runs * law)[common] / np.sqrt(runs * law * (1 - law))[common]
    assert common.sum() > 20
    assert np.abs(z).max() < 4


def test_impossible_evidence():
    net = sprinkler()
    given = {"rain": 0, "sprinkler": 0, "wet": 1}
    assert net.log_evidence(given) == -jnp.inf
    given = {"sprinkler": 0, "wet": 1, "rain": 0}
    assert jnp.isnan(net.posterior((), given))
    tied = BayesNet(("a", "b"), ((), ("a",)), (log([1.0, 0.0]), log(np.eye(2))))
    assert tied.log_evidence({"b": 1}) == -jnp.inf
    assert tied.posterior_sample(jax.random.key(0), {"b": 1}) == {"a": -1, "b": 1}
    grads = jax.grad(lambda n: n.log_evidence({"b": 1}))(tied)
    assert all(bool(jnp.all(g == 0)) for g in jax.tree.leaves(grads))


def test_gradient_is_the_posterior_of_the_family():
    net = sprinkler()
    grads = jax.grad(lambda n: n.log_evidence({"wet": 1}))(net)
    np.testing.assert_allclose(grads.log_tables[0], net.posterior(("rain",), {"wet": 1}), atol=1e-6)
    family = net.posterior(("sprinkler", "rain"), {"wet": 1})
    np.testing.assert_allclose(grads.log_tables[2][:, :, 1], family, atol=1e-6)
    assert jnp.all(grads.log_tables[2][:, :, 0] == 0)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((("a", "b"), (("b",), ()), (log(np.eye(2)), log([1.0, 0.0]))), "after its parents"),
        ((("a", "a"), ((), ()), (log([1.0]), log([1.0]))), "must differ"),
        ((("a",), ((), ()), (log([1.0]),)), "one entry a node"),
        ((("a",), ((),), ([0.5, 0.5],)), "log_softmax"),
        ((("a", "b"), ((), ("a",)), (log([1.0, 0.0]), log([[1.0]]))), "has shape"),
        ((("a",), ((),), (0.0,)), "scalar"),
        (
            (("a", "b"), ((), ("a", "a")), (log([1.0]), log([[[1.0]]]))),
            "twice",
        ),
    ],
)
def test_bad_networks_are_errors(args, message):
    with pytest.raises(ValueError, match=message):
        BayesNet(*args)


def test_bad_questions_are_errors():
    net = sprinkler()
    with pytest.raises(ValueError, match="No nodes named"):
        net.log_marginal(("snow",))
    with pytest.raises(ValueError, match="once"):
        net.log_marginal(("rain",), {"rain": 1})
    with pytest.raises(ValueError, match=r"'rain' must be in 0\.\.1"):
        net.log_evidence({"rain": 2})
    with pytest.raises(ValueError, match="use log_evidence"):
        net.log_joint({"rain": 1})


@pytest.mark.x64
def test_program_has_the_same_joint_law():
    net = random_net()
    keys = jax.random.split(jax.random.key(5), 200)
    program = net.program()
    traces = jax.jit(jax.vmap(program.simulate))(keys)
    expected = jax.vmap(net.log_joint)(traces.choices)
    np.testing.assert_allclose(traces.score, expected, rtol=1e-4)
    assert set(traces.choices) == set(net.names)
    impossible = {"rain": 0, "sprinkler": 0, "wet": 1}
    assert sprinkler().program().assess(impossible)[0] == -jnp.inf


@pytest.mark.slow
def test_program_draws_the_marginals():
    net = random_net()
    keys = jax.random.split(jax.random.key(6), 20_000)
    drawn = jax.jit(jax.vmap(lambda k: net.program().simulate(k).choices))(keys)
    for name in net.names:
        p = np.asarray(net.posterior((name,)), dtype=float)
        counts = np.bincount(np.asarray(drawn[name]), minlength=len(p))
        assert np.abs(counts - 20_000 * p).max() < 4 * np.sqrt(20_000 * 0.25)
