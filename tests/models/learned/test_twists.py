"""Twists learned from our own particle filter's draws, in use."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac import inference, models
from feynkac.models import learned

from .small import BETA, EOS, LENGTH, Enumerated, plain, rewarded, tilted
from .test_losses import minimised

N, RUNS = 8, 600


@pytest.fixture(scope="module")
def exact():
    return Enumerated()


@pytest.fixture(scope="module")
def model():
    return tilted()


@pytest.fixture(scope="module")
def taught(exact, model):
    """A twist of next values, by contrast of SMC's posterior draws with the model's own."""
    keys = jax.random.split(jax.random.key(3), 2)
    smc = inference.SMC(600).run(keys[0], model)
    own = inference.Importance(600).run(keys[1], plain())
    positives = learned.walks(model, smc, exact.view)
    negatives = learned.walks(model, own, exact.view)
    start = learned.NextTwist(
        learned.head(jax.random.key(0), len(exact.state), 3, width=None), exact.view
    )

    def loss(head):
        return learned.contrastive(replace(start, head=head), positives, negatives)

    return replace(start, head=minimised(loss, start.head, 400, 0.1))


@pytest.fixture(scope="module")
def some(exact):
    """A twist that knows nothing."""
    made = learned.head(jax.random.key(2), len(exact.state), 3, width=None)
    made = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(1), x.shape), made)
    return learned.NextTwist(made, exact.view)


@pytest.mark.slow
def test_a_learned_twist_raises_the_ess_and_keeps_the_evidence(exact, model, taught):
    untaught = inference.SMC(N)
    guided = inference.SMC(N, proposal=taught.proposal(), twist=taught)

    @jax.jit
    def runs(keys):
        def one(key):
            before, after = untaught.run(key, model), guided.run(key, model)
            return before.log_evidence, after.log_evidence, before.ess, after.ess

        return jax.vmap(one)(keys)

    before, after, few, many = map(np.asarray, runs(jax.random.split(jax.random.key(1), RUNS)))
    for levels in (before, after):
        z = np.exp(levels - exact.log_evidence)
        assert abs(z.mean() - 1) < 4 * z.std() / RUNS**0.5
    assert np.exp(after).std() < np.exp(before).std() / 3
    assert many.mean() > 0.9 * N and many.mean() > 1.5 * few.mean()


def test_psi_is_one_at_the_end(exact, model, some):
    """And before it what the values sum to; of what has ended 1, whatever the network says."""
    fk = inference.SMC(2, twist=some).driver(model_target(model)).fk
    state = model.replay({"token": jnp.array([1, EOS, 0, 0])}, jnp.int32(2))
    assert fk.log_psi(jax.random.key(0), state, jnp.int32(2)) == 0
    state = model.replay({"token": jnp.array([1, 1, 0, 0])}, jnp.int32(2))
    assert fk.log_psi(jax.random.key(0), state, jnp.int32(LENGTH)) == 0
    inner = fk.log_psi(jax.random.key(0), state, jnp.int32(2))
    row = np.argmax((exact.tokens[:, :2] == 1).all(1))
    values = some.log_values(exact.walks)
    np.testing.assert_allclose(inner, values[row, 2], atol=1e-5)
    assert (values[exact.tokens[:, 0] == EOS, 1:] == 0).all()


def model_target(model):
    from feynkac import ppl

    return ppl.Target(model)


def test_walks_give_back_the_weights(exact, model):
    """The gains along a walk add up to the weight of the whole, whatever drew it."""
    ended = (exact.tokens == EOS).any(1)
    counts = jnp.asarray(np.argmax(exact.tokens == EOS, axis=1))
    rewards = np.asarray(jax.vmap(rewarded)(jnp.asarray(exact.tokens), counts)) / BETA
    expected = np.where(ended, rewards, -np.inf)
    np.testing.assert_allclose(exact.walks.log_gain.sum(1), expected, atol=1e-5)
    tokens = {"token": jnp.asarray(exact.tokens)}
    few = learned.walks(model, tokens, exact.view, law=True, batch_size=7)
    np.testing.assert_allclose(few.log_gain, exact.walks.log_gain, atol=1e-6)
    np.testing.assert_allclose(few.log_law, exact.walks.log_law, atol=1e-6)
    np.testing.assert_array_equal(few.features, exact.walks.features)


@pytest.mark.slow
def test_populations_are_the_filters(exact, model, some):
    """E[mean weight of what is at a prefix and token after each step] is their law times weight."""
    smc = inference.SMC(
        4, resampler=inference.Multinomial(ess_threshold=0.9), proposal=some.proposal()
    )

    @jax.jit
    def runs(keys):
        def one(key):
            p = learned.populations(key, smc, model, exact.view)
            at = p.features[..., :, None] * jax.nn.one_hot(p.tokens, 3)[..., None, :]
            seen = jnp.where(p.active, jnp.exp(p.log_weights), 0.0)
            return jnp.sum(at * seen[..., None, None], 1) / seen.shape[1]

        return jax.vmap(one)(keys)

    tables = np.asarray(runs(jax.random.split(jax.random.key(5), 800)))
    walks = exact.walks
    past = np.exp(np.asarray(walks.log_past + walks.log_ratio + walks.log_gain))
    prefix = np.asarray(walks.features).argmax(-1)
    for t in range(LENGTH):
        expected = np.zeros(tables.shape[2:])
        for i in range(len(prefix)):
            if walks.active[i, t]:
                expected[prefix[i, t], walks.tokens[i, t]] += past[i, t]
        mean, error = tables[:, t].mean(0), tables[:, t].std(0) / len(tables) ** 0.5
        assert (np.abs(mean - expected) <= 4 * error + 1e-6).all(), t


@pytest.mark.slow
def test_draws_of_a_proposal_stand_for_the_models(exact, model, some):
    """The ratios along a walk are those that the filter weighs by."""
    target = inference.SMC(400, proposal=some.proposal(), resampler=None)
    particles = target.run(jax.random.key(9), model)
    walks = learned.walks(model, particles, exact.view, proposal=some.proposal(), law=True)
    own = jnp.take_along_axis(walks.log_law, walks.tokens[..., None], 2)[..., 0]
    ratio = jnp.where(walks.active, own - some.log_proposal(walks), 0.0)
    np.testing.assert_allclose(walks.log_ratio, ratio, atol=1e-5)
    np.testing.assert_allclose(
        jnp.sum(walks.log_ratio + walks.log_gain, 1), particles.log_weights, atol=1e-4
    )


def test_a_model_without_hidden_state_needs_features():
    model = plain() * models.DeviceReward(rewarded)
    view = learned.text_view(model)
    tokens = {"token": jnp.zeros((1, LENGTH), jnp.int32)}
    with pytest.raises(ValueError, match="no hidden state"):
        learned.walks(model, tokens, view)
    with pytest.raises(ValueError, match="law="):
        learned.walks(model, tokens, learned.View(written_code), law=True)


def written_code(text, t, *_):
    return jnp.zeros(1)
