"""Six routes to p0(x) exp(r(x) / beta), and enumeration: one law."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from feynkac import inference, ppl
from feynkac.inference import vi
from feynkac.inference.vi.fit import fit
from feynkac.models import learned

from .small import BETA, EOS, LENGTH, Enumerated, plain, rewarded, tilted

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def exact():
    return Enumerated()


def hits(exact, tokens):
    """Which text of `exact` each of `tokens` [n, T] is, one-hot [n, texts]."""
    return jnp.all(tokens[:, None, :] == jnp.asarray(exact.tokens)[None], axis=2).astype(float)


def distance(exact, law):
    """Total variation."""
    return 0.5 * np.abs(law - np.exp(exact.log_posterior)).sum()


def agrees(exact, laws):
    """The mean law of independent runs is the posterior: text by text, and in total variation."""
    laws = np.asarray(laws, float)
    error = laws.std(0, ddof=1) / len(laws) ** 0.5
    assert (np.abs(laws.mean(0) - np.exp(exact.log_posterior)) < 4 * error + 1e-6).all()
    # Under noise alone E|mean - p| is sqrt(2 / pi) standard errors a text.
    noise = 0.5 * np.sqrt(2 / np.pi) * error.sum()
    assert noise < 0.02, "the error bars say nothing"
    assert distance(exact, laws.mean(0)) < 3 * noise


def runs(exact, algorithm, n):
    """E[weights of each text] / Z of n runs: unbiased."""
    model = tilted()

    @jax.jit
    def each(keys):
        def one(key):
            particles = algorithm.run(key, model)
            weights = jnp.exp(particles.log_weights - exact.log_evidence)
            return weights @ hits(exact, particles.choices["token"]) / weights.shape[0]

        return jax.vmap(one)(keys)

    return each(jax.random.split(KEY, n))


def test_smc(exact):
    agrees(exact, runs(exact, inference.SMC(64), 300))


def test_importance_sampling(exact):
    agrees(exact, runs(exact, inference.Importance(64), 300))


def test_mcmc(exact):
    chains = inference.MCMC(inference.Suffix(), n_chains=60, n_samples=700, burn_in=30)
    tokens = chains.run(KEY, tilted()).choices["token"]
    agrees(exact, jax.vmap(lambda x: hits(exact, x).mean(0))(tokens))


def _init(ctx, table):
    return jnp.int32(0), jnp.zeros((), bool)


def _step(ctx, state, t, table):
    number, _ = state
    forced = (t == LENGTH - 1) & (jnp.arange(3) != EOS)
    token = ctx.sample("token", ppl.Token(jnp.where(forced, -jnp.inf, table[number])))
    token = token.astype(jnp.int32)
    after = number - (2**t - 1) + token * 2**t + 2 ** (t + 1) - 1
    return jnp.where(token == EOS, 0, after), token == EOS


def family(table):
    """A law of texts that end: logits of the next token after each beginning, [15, 3]."""
    return ppl.StateSpace(_init, _step, LENGTH, lambda state: state[1]).bind(table)


def flat():
    return jnp.zeros((2**LENGTH - 1, 3))


def log_q(table, tokens):
    """Log densities of texts [n, T] under the family."""
    return jax.vmap(lambda x: family(table).assess({"token": x})[0])(tokens)


def law(exact, table):
    ended = (exact.tokens == EOS).any(1)
    log_probs = log_q(table, jnp.asarray(exact.tokens))
    return np.where(ended, np.exp(np.asarray(log_probs)), 0.0)


def learned_law(exact, objective, steps, **options):
    """The law after ascent with a rate that falls to 0."""
    rate = optax.cosine_decay_schedule(0.1, steps)
    options = {"steps": steps, "every": steps, "progress": False, **options}
    found = fit(KEY, objective, flat(), optimizer=optax.adam(rate), **options)
    assert found.status
    return law(exact, found.params)


def test_vi(exact):
    """The ELBO of the tilted target, its score gradients with a leave-one-out baseline."""

    def objective(ctx, table, target):
        guide = family(table)
        choices, log_density = ctx.draw("guide", guide)
        return ctx.log_density("target", target, choices) - log_density

    options = {"samples": 32, "baseline": vi.LeaveOneOut(), "strategies": vi.Score()}
    target = ppl.Target(tilted())
    found = learned_law(exact, vi.objective(objective), 600, args=(target,), **options)
    assert distance(exact, found) < 0.02


def rewards_of(tokens):
    ended = tokens == EOS
    return jax.vmap(rewarded)(tokens, jnp.argmax(ended, axis=1))


def log_prior(model, tokens):
    return jax.vmap(lambda x: model.assess({"token": x})[0])(tokens)


def test_reinforce_with_kl(exact):
    def estimate(key, table, prior):
        def loss(table):
            keys = jax.random.split(key, 32)
            tokens = jax.vmap(lambda k: family(table).simulate(k).choices["token"])(keys)
            tokens = jax.lax.stop_gradient(tokens)
            log_p, rewards = log_prior(prior, tokens), rewards_of(tokens)
            return learned.reinforce_kl(log_q(table, tokens), log_p, rewards, BETA)

        value, gradient = jax.value_and_grad(loss)(table)
        return -value, -gradient

    assert distance(exact, learned_law(exact, estimate, 600, args=(plain(),))) < 0.02


def test_distillation(exact):
    """BRAIn from the prior's own draws, ranked by Plackett and Luce."""

    def estimate(key, table, prior):
        keys = jax.random.split(key, 128)
        tokens = jax.vmap(lambda k: prior.simulate(k).choices["token"])(keys)
        ended = (tokens == EOS).any(1)
        log_p, rewards = log_prior(prior, tokens), rewards_of(tokens)
        goodness = learned.plackett_luce(jnp.where(ended, rewards / BETA, -jnp.inf))

        def loss(table):
            inside = jnp.where(ended, log_q(table, jnp.where(ended[:, None], tokens, EOS)), -60.0)
            return learned.brain(inside, log_p, goodness)

        value, gradient = jax.value_and_grad(loss)(table)
        return -value, -gradient

    assert distance(exact, learned_law(exact, estimate, 600, args=(plain(),))) < 0.02


def test_a_wrong_temperature_is_seen(exact):
    """The bounds above can fail: the law of another beta is further off than they allow."""
    weights = np.asarray(exact.walks.log_gain.sum(1)) * 0.8 + exact.log_p
    wrong = np.exp(weights - np.logaddexp.reduce(weights))
    assert distance(exact, wrong) > 0.03
