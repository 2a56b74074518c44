"""The tilted target, its objectives' gradients and special cases, against enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac import inference, models, ppl
from feynkac.models import learned
from feynkac.models.finite import MarkovLanguageModel, MarkovLM
from feynkac.ppl import dist

from .small import BETA, EOS, INITIAL, LENGTH, TABLE, plain, rewarded, tilted


def rewards_of(tokens):
    counts = np.argmax(np.asarray(tokens) == EOS, axis=1)
    return np.asarray(jax.vmap(rewarded)(jnp.asarray(tokens), jnp.asarray(counts)))


def test_tilted_is_the_prior_times_the_reward():
    post, prior = (inference.exact.enumerate(m) for m in (tilted(), plain()))
    whole = (np.asarray(prior.choices["token"]) == EOS).any(1)
    tokens = np.asarray(prior.choices["token"])[whole]
    density = prior.log_probs[whole] + rewards_of(tokens) / BETA
    assert abs(np.logaddexp.reduce(density) - post.log_evidence) < 1e-5
    log_p = jax.vmap(post.log_prob)({"token": jnp.asarray(tokens)})
    np.testing.assert_allclose(log_p, density - post.log_evidence, atol=1e-4)
    lm = MarkovLanguageModel(MarkovLM(np.log(INITIAL), np.log(TABLE), eos=EOS))
    reward = models.DeviceReward(rewarded)
    same = learned.tilted(lm, reward, BETA, prompt=[], max_tokens=LENGTH)
    assert inference.exact.enumerate(same).log_evidence == pytest.approx(post.log_evidence)
    with pytest.raises(ValueError, match="above 0"):
        learned.tilted(plain(), reward, 0.0)
    with pytest.raises(ValueError, match="prompt= and max_tokens="):
        learned.tilted(lm, reward, 1.0)
    with pytest.raises(ValueError, match="has its prompt"):
        learned.tilted(plain(), reward, 1.0, max_tokens=3)


@pytest.mark.slow
def test_sharpening_is_a_power_of_whole_texts():
    prior, sharp = plain(), inference.exact.enumerate(learned.sharpened(plain(), 0.5))
    log_p = inference.exact.enumerate(prior)
    expected = 3 * log_p.log_probs
    expected = expected - np.logaddexp.reduce(expected)
    found = jax.vmap(sharp.log_prob)(log_p.choices)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def small_family():
    """Softmax of 6 numbers: densities of all outcomes; prior and rewards of each."""
    keys = jax.random.split(jax.random.key(0), 3)
    theta, log_p = jax.random.normal(keys[0], (6,)), jax.random.normal(keys[1], (6,))
    return theta, jax.nn.log_softmax(log_p), 2.0 + jax.random.normal(keys[2], (6,))


def test_reinforce_is_unbiased_and_its_baseline_helps():
    theta, log_p, rewards = small_family()
    beta, runs = 0.6, 4000

    def objective(theta):
        log_q = jax.nn.log_softmax(theta)
        return jnp.sum(jnp.exp(log_q) * (rewards - beta * (log_q - log_p)))

    value, gradient = jax.value_and_grad(objective)(theta)

    @jax.jit
    def estimates(keys):
        def one(key):
            x = jax.random.categorical(key, theta, shape=(4,))

            def loss(theta, baseline):
                log_q = jax.nn.log_softmax(theta)[x]
                return learned.reinforce_kl(
                    log_q, log_p[x], rewards[x], beta, leave_one_out=baseline
                )

            both = [jax.value_and_grad(loss)(theta, flag) for flag in (True, False)]
            return jax.tree.map(jnp.negative, both)

        return jax.vmap(one)(keys)

    spreads = []
    for values, grads in estimates(jax.random.split(jax.random.key(1), runs)):
        values, grads = np.asarray(values), np.asarray(grads)
        assert abs(values.mean() - value) < 4 * values.std() / runs**0.5
        error = grads.std(0) / runs**0.5
        assert (np.abs(grads.mean(0) - gradient) < 4 * error).all()
        spreads.append(grads.var(0).sum())
    assert spreads[0] < 0.8 * spreads[1]


def test_brain_has_its_gradient_and_the_posterior_as_optimum():
    theta, log_p, rewards = small_family()
    x = jnp.arange(6)

    def loss(theta, baseline=True):
        log_q = jax.nn.log_softmax(theta)[x]
        goodness = learned.plackett_luce(rewards / 0.6)
        drawn_by = jnp.full(6, -jnp.log(6.0))
        return learned.brain(log_q, log_p, goodness, drawn_by, baseline=baseline)

    posterior = jax.nn.log_softmax(log_p + rewards / 0.6)
    np.testing.assert_allclose(loss(posterior), 0.0, atol=1e-6)
    np.testing.assert_allclose(jax.grad(loss)(posterior), 0.0, atol=1e-6)
    b = jax.nn.softmax(theta)
    np.testing.assert_allclose(jax.grad(loss)(theta), b - jnp.exp(posterior), atol=1e-6)
    both = jax.grad(loss)(theta), jax.grad(lambda t: loss(t, False))(theta)
    np.testing.assert_allclose(*both, atol=1e-6)  # over all outcomes the baseline is nothing


def test_goodness():
    rewards = jnp.array([0.3, -1.0, 2.0])
    log_g = learned.bradley_terry(rewards, 0.5)
    expected = jnp.exp(rewards) / (jnp.exp(rewards) + jnp.exp(0.5))
    np.testing.assert_allclose(jnp.exp(log_g), expected, rtol=1e-5)
    far = learned.bradley_terry(rewards, 40.0)
    np.testing.assert_allclose(jax.nn.log_softmax(far), learned.plackett_luce(rewards), atol=1e-5)


def test_dpo_is_brain_of_two_draws_of_the_prior_with_the_best_for_the_posterior():
    log_p = jnp.log(jnp.array([[0.2, 0.5], [0.1, 0.3]]))
    log_q = jnp.log(jnp.array([[0.3, 0.3], [0.2, 0.1]]))
    hard = jnp.array([[0.0, -jnp.inf], [0.0, -jnp.inf]])
    dpo = jax.grad(lambda q: learned.dpo(q, log_p, 1.0))(log_q)
    brain = jax.grad(lambda q: learned.brain(q, log_p, hard))(log_q)
    np.testing.assert_allclose(dpo, brain, atol=1e-6)
    assert learned.dpo(log_q, log_p, 2.0) != learned.dpo(log_q, log_p, 1.0)


def test_the_mixture_has_the_least_error():
    """Of means of n pairs about the truth 0: g1 noisy, g2 steady and off by `bias`."""
    n, d, runs = 32, 64, 400
    bias, spread1, spread2, shared = 0.25, 2.0, 0.3, 0.2
    keys = jax.random.split(jax.random.key(0), 3)
    a, b, c = (jax.random.normal(k, (runs, n, d)) for k in keys)
    g1 = {"w": spread1 * a + shared * c}
    g2 = {"w": bias + spread2 * b + shared * c}
    mixed, alpha = jax.jit(jax.vmap(learned.mix_estimators))(g1, g2)
    v1, v2, c12 = spread1**2 + shared**2, spread2**2 + shared**2, shared**2
    best = (bias**2 + (v2 - c12) / n) / (bias**2 + (v1 + v2 - 2 * c12) / n)
    assert abs(np.median(alpha) - best) < 0.05

    def error(x):
        return float(jnp.mean(jnp.sum(x**2, -1)))

    least = (best**2 * v1 + (1 - best) ** 2 * v2 + 2 * best * (1 - best) * c12) / n
    least = d * (least + (1 - best) ** 2 * bias**2)
    singles = error(g1["w"].mean(1)), error(g2["w"].mean(1))
    assert error(mixed["w"]) < 0.9 * min(singles)
    assert error(mixed["w"]) < 1.25 * least
    with pytest.raises(ValueError, match="pairs"):
        learned.mix_estimators(jnp.ones((1, 2)), jnp.ones((1, 2)))


@ppl.program
def reasoned(ctx, theta):
    """A thought, then an answer that depends on it."""
    thought = ctx.sample("thought", dist.Categorical(logits=theta["thought"]))
    ctx.sample("answer", dist.Categorical(logits=theta["answer"][thought]))


@pytest.mark.slow
def test_em_climbs_the_likelihood_of_the_answer():
    keys = jax.random.split(jax.random.key(0), 2)
    theta = {
        "thought": jax.random.normal(keys[0], (4,)),
        "answer": jax.random.normal(keys[1], (4, 3)),
    }

    def target(theta):
        return ppl.Target(reasoned, (theta,), {"answer": jnp.int32(1)})

    def likelihood(theta):
        each = jax.nn.log_softmax(theta["thought"]) + jax.nn.log_softmax(theta["answer"])[:, 1]
        return jax.nn.logsumexp(each)

    exact = inference.exact.enumerate(target(theta))

    def objective(theta):
        weights = jnp.asarray(exact.log_probs, float)
        free = {"thought": exact.choices["thought"]}
        return learned.m_objective(target(theta), free, weights)

    gradient, expected = jax.grad(objective)(theta), jax.grad(likelihood)(theta)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, expected)

    @jax.jit
    def step(key, theta):
        algorithm = inference.Importance(400)
        draws = learned.e_step(key, algorithm, target(theta), resampled=True)
        free = {"thought": draws.choices["thought"]}
        moved = jax.grad(lambda t: learned.m_objective(target(t), free, draws.log_weights))(theta)
        climbed = jax.tree.map(lambda x, g: x + 2.0 * g, theta, moved)
        return climbed, draws.log_evidence, likelihood(theta)

    levels = []
    for i in range(20):
        theta, level, at = step(jax.random.key(i), theta)
        assert abs(float(level - at)) < 0.3
        levels.append(float(at))
    assert levels[-1] > levels[0] + 0.5 and levels[-1] > -0.15
