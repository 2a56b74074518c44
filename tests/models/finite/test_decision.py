"""Planning as inference against all policies, all plans and all paths of a small process."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac.models.finite.decision import DecisionChain

K, A, T = 2, 2, 3
FIRST = np.array([0.4, 0.6])


def tables():
    rng = np.random.default_rng(2)
    move = rng.dirichlet(np.ones(K), size=(T, K, A))
    move[0, 0, 1] = [0.0, 1.0]
    return move, rng.normal(size=(T, K, A, K))


def process(scale=1.0):
    move, reward = tables()
    with np.errstate(divide="ignore"):
        return DecisionChain(np.log(FIRST), np.log(move) + scale * reward)


def paths():
    """Every path of states and actions, its probability given the actions, and its reward."""
    move, reward = tables()
    for xs in itertools.product(range(K), repeat=T + 1):
        for actions in itertools.product(range(A), repeat=T):
            p, r = FIRST[xs[0]], 0.0
            for t, a in enumerate(actions):
                p *= move[t, xs[t], a, xs[t + 1]]
                r += reward[t, xs[t], a, xs[t + 1]]
            yield xs, actions, p, r


def test_types_of_inference():
    """Marginal, planning, marginal MAP, MAP: each by brute force, and in this order."""
    every = list(paths())
    marginal = np.log(sum(p * np.exp(r) for _, _, p, r in every))
    plans = {}
    for _, actions, p, r in every:
        plans[actions] = plans.get(actions, 0.0) + p * np.exp(r)
    best_plan = max(plans, key=plans.__getitem__)
    best_path = max(every, key=lambda e: e[2] * np.exp(e[3]))
    policies = itertools.product(range(A), repeat=T * K)
    values = []
    for policy in policies:
        policy = np.reshape(policy, (T, K))
        values.append(
            sum(
                p * np.exp(r)
                for xs, actions, p, r in every
                if all(policy[t, xs[t]] == a for t, a in enumerate(actions))
            )
        )
    planning = np.log(max(values))

    @jax.jit
    def answers(d, plan):
        policy = d.policy()
        values = (
            d.log_value(1.0, 1.0),
            d.log_value(),
            d.given(plan).log_value(),
            d.log_value(0.0, 0.0),
            d.under(policy).log_value(),
        )
        return values, d.policy(1.0, 1.0), d.sample(jax.random.key(0), 0.0, 0.0)

    values, soft, (xs, actions) = answers(process(), jnp.array(best_plan))
    mmap, best = np.log(plans[best_plan]), np.log(best_path[2]) + best_path[3]
    # The policy returned attains the value of planning.
    np.testing.assert_allclose(values, [marginal, planning, mmap, best, planning], rtol=1e-5)
    assert marginal > planning > mmap > best
    np.testing.assert_allclose(jnp.sum(soft, axis=2), np.ones((T, K)), rtol=1e-5)
    assert (tuple(xs.tolist()), tuple(actions.tolist())) == best_path[:2]


def test_samples_of_a_plan_follow_the_tilted_process():
    """At (0, 1): actions of the best policy, states by the process tilted by exp(reward)."""
    d = process()
    policy = np.asarray(d.policy()).argmax(2)
    law = {}
    for xs, actions, p, r in paths():
        if all(policy[t, xs[t]] == a for t, a in enumerate(actions)):
            law[xs + actions] = p * np.exp(r)
    total = sum(law.values())
    runs = 20_000
    keys = jax.random.split(jax.random.key(3), runs)
    xs, actions = jax.jit(jax.vmap(d.sample))(keys)
    rows, counts = np.unique(np.concatenate([xs, actions], axis=1), axis=0, return_counts=True)
    z = []
    for row, count in zip(rows, counts, strict=True):
        q = law[tuple(row.tolist())] / total
        if q * runs > 20:
            z.append((count - runs * q) / np.sqrt(runs * q * (1 - q)))
    assert len(z) >= 8 and np.abs(z).max() < 4


def test_small_rewards_give_the_expected_reward():
    move, reward = tables()
    value = np.zeros(K)
    for t in reversed(range(T)):
        q = np.sum(move[t] * (reward[t] + value[None, None]), axis=2)
        value = q.max(1)
    scale = 1e-3
    got = float(process(scale).log_value()) / scale
    np.testing.assert_allclose(got, FIRST @ value, rtol=5e-3, atol=2e-3)


def test_bad_tables():
    with pytest.raises(ValueError, match=r"log_steps \[T, K, A, K\]"):
        DecisionChain(np.zeros(2), np.zeros((3, 2, 2, 3)))
    nowhere = DecisionChain(np.zeros(2), np.full((2, 2, 2, 2), -np.inf))
    assert nowhere.log_value() == -jnp.inf and jnp.isnan(nowhere.policy()).all()
    xs, actions = nowhere.sample(jax.random.key(0))
    assert (xs < 0).all() and (actions < 0).all()
