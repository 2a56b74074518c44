"""Given all texts with their probabilities, each loss has the exact twist or proposal."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from feynkac.models import learned

from .small import Enumerated

pytestmark = pytest.mark.slow  # some twenty seconds, most of them to compile nine losses at once
STATE, NEXT = ("contrastive", "sixo", "fudge"), ("contrastive", "sixo", "fudge", "soft_q", "path")


@pytest.fixture(scope="module")
def exact():
    return Enumerated()


def minimised(loss, start, steps, rate):
    """Adam; a test is no place for a training loop of its own, and this is the least there is."""
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    @jax.jit
    def run(start):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (start, optimizer.init(start)), length=steps)[0][0]

    with jax.numpy_dtype_promotion("standard"):  # as optax is written
        return run(start)


@pytest.fixture(scope="module")
def trained(exact):
    """All twists at once: one compiled program."""
    size = len(exact.state)

    def twist(kind, name, out):
        made = learned.head(jax.random.key(0), size, out, width=None)
        return kind(made, exact.view, ceiling=0.0 if name == "fudge" else None)

    twists = {("state", name): twist(learned.StateTwist, name, 1) for name in STATE}
    twists |= {
        ("next", name): twist(learned.NextTwist, name, 3) for name in (*NEXT, "dpg", "nasmc")
    }
    heads = {key: value.head for key, value in twists.items()}
    walks, positives, negatives = exact.walks, exact.positives, exact.negatives
    past = walks.log_past + walks.log_ratio + walks.log_gain  # after each step, all ratios included
    by_step = jax.tree.map(
        lambda x: jnp.swapaxes(x, 0, 1), (walks.features, walks.known, walks.tokens, walks.active)
    )
    filtered = learned.Populations(*by_step, past.T, jnp.swapaxes(walks.log_law, 0, 1))
    by_name = {
        "contrastive": lambda twist: learned.contrastive(twist, positives, negatives, 1.0),
        "sixo": lambda twist: learned.sixo(twist, positives, negatives),
        "fudge": lambda twist: learned.fudge(twist, walks),
        "soft_q": lambda twist: learned.soft_q(twist, walks),
        "path": lambda twist: learned.path_consistency(twist, walks),
        "dpg": lambda twist: learned.dpg(twist.log_proposal(walks).sum(1), walks.log_weights),
        "nasmc": lambda t: learned.nasmc(t.log_proposal(filtered), filtered.log_weights),
    }

    def loss(heads):
        total = jnp.zeros(())
        for (kind, name), head in heads.items():
            total += by_name[name](replace(twists[kind, name], head=head))
        return total

    heads = minimised(loss, heads, 2500, 0.1)
    return {key: replace(twists[key], head=head) for key, head in heads.items()}


def off(estimate, exact):
    """Largest error of log psi where it is finite; what is impossible is learned to be so."""
    here = np.isfinite(exact)
    assert (estimate[~here & ~np.isnan(exact)] < -4).all()
    return np.abs(estimate - np.where(here, exact, 0.0))[here].max()


def psi(exact, twist):
    value = exact.of(twist.head)
    return value if twist.ceiling is None else np.asarray(jax.nn.log_sigmoid(value))


@pytest.mark.parametrize("name", STATE)
def test_twists_of_states_are_the_expected_weight(exact, trained, name):
    assert off(psi(exact, trained["state", name])[:, 0], exact.state) < 0.02


@pytest.mark.parametrize("name", NEXT)
def test_twists_of_next_values_are_the_expected_weight(exact, trained, name):
    assert off(psi(exact, trained["next", name]), exact.next) < 0.02


@pytest.mark.parametrize("name", [*NEXT, "dpg"])
def test_the_induced_proposal_is_the_posterior(exact, trained, name):
    log_q = np.asarray(trained["next", name].log_proposal(exact.walks).sum(1))
    alive = np.isfinite(exact.log_posterior)
    p = np.exp(exact.log_posterior[alive])
    assert np.sum(p * (exact.log_posterior[alive] - log_q[alive])) < 1e-3


def test_nasmc_learns_the_locally_optimal_proposal(exact, trained):
    """Which is the prior here until the text ends: what weighs is the end alone."""
    walks, active = exact.walks, np.asarray(exact.walks.active)
    log_q = np.asarray(trained["next", "nasmc"].log_proposal(walks))
    favoured = walks.log_law + exact_gain(exact)[np.asarray(walks.features).argmax(-1)]
    best = jax.nn.log_softmax(favoured)
    best = np.asarray(jnp.take_along_axis(best, walks.tokens[..., None], 2)[..., 0])
    seen = active & np.isfinite(best)
    assert np.abs(log_q - np.where(seen, best, 0.0))[seen].max() < 0.02


def exact_gain(exact):
    """Log weight of each next token after each prefix, [prefix, token]."""
    walks, gain = exact.walks, np.zeros(exact.next.shape)
    prefix = np.asarray(walks.features).argmax(-1)
    rows = np.asarray(walks.active)
    where = prefix[rows], np.asarray(walks.tokens)[rows]
    gain[where] = np.asarray(walks.log_gain)[rows]
    return gain


def test_a_twist_that_is_wrong_is_told_apart(exact):
    """The losses are no constants: at psi = 1 each is above its least value."""
    size = len(exact.state)
    flat = learned.NextTwist(learned.head(jax.random.key(0), size, 3, width=None), exact.view)
    best = np.where(np.isfinite(exact.next), exact.next, -30.0)
    perfect = replace(flat, values=jnp.asarray(best.T, jnp.float32), head=identity(size))
    np.testing.assert_allclose(exact.of(perfect.head) @ best, best, atol=1e-5)
    losses = [
        lambda t: learned.contrastive(t, exact.positives, exact.negatives),
        lambda t: learned.sixo(t, exact.positives, exact.negatives),
        lambda t: learned.soft_q(t, exact.walks),
        lambda t: learned.path_consistency(t, exact.walks),
    ]
    for loss in losses:
        assert loss(flat) > loss(perfect) + 1e-3
    assert losses[2](perfect) < 1e-5 and losses[3](perfect) < 1e-5


def identity(size):
    """A head that gives its features back."""
    made = learned.head(jax.random.key(0), size, size, width=None)
    network = jax.tree.map(lambda x: jnp.eye(size) if x.ndim == 2 else x, made.network)
    return replace(made, network=network)


def test_what_is_missing_is_said(exact):
    flat = learned.StateTwist(learned.head(jax.random.key(0), len(exact.state)), exact.view)
    with pytest.raises(ValueError, match="ceiling"):
        learned.fudge(flat, exact.walks)
    bare = replace(exact.walks, log_law=None)
    with pytest.raises(ValueError, match="law=True"):
        learned.soft_q(learned.NextTwist(flat.head, exact.view), bare)
