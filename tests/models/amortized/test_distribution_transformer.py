"""The Distribution Transformer on Gaussian measurements of a position, where Bayes is closed form.

What holds for any weights is tested with random ones; one network, small and trained for seconds,
serves all tests of accuracy.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac import inference, models, ppl
from feynkac.models.amortized.distribution_transformer import distribution_transformer
from feynkac.models.amortized.filtering import error_of, filtering
from feynkac.models.amortized.meta_prior import Problem, meta_prior
from feynkac.models.amortized.mixtures import Mixture, gaussian
from feynkac.models.amortized.posterior_loss import PosteriorLoss, retained_score
from feynkac.models.amortized.refit import LinearDynamics
from feynkac.ppl import dist

NOISE = 0.5


@ppl.program
def measured(ctx):
    """Three components, a measurement of x or none."""
    logits = ctx.sample("logits", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    means = ctx.sample("means", dist.Normal(0.0, 2.0).expand([3, 1]).to_event(2))
    scales = ctx.sample("scales", dist.LogNormal(-0.5, 0.5).expand([3, 1, 1]).to_event(3))
    prior = Mixture(logits, means, scales)
    x = ctx.sample("x", prior.distribution)
    seen = ctx.sample("seen", dist.Bernoulli(0.8))
    observed = seen[None] > 0
    z = ctx.sample("z", dist.Normal(x, NOISE).mask(observed).to_event(1))
    return prior, {"z": z}, {"z": observed}


def exact(prior, z):
    return prior.update(z, jnp.eye(1), NOISE**2 * jnp.eye(1))[0]


def kl(p, q, key, n=500):
    """KL(p || q), nats, by draws of p."""
    x = p.sample(key, (n,))
    return jnp.mean(jax.vmap(p.log_prob)(x) - jax.vmap(q.log_prob)(x))


def random_prior(key, k=3):
    keys = jax.random.split(key, 3)
    return Mixture(
        jax.random.normal(keys[0], (k,)),
        2 * jax.random.normal(keys[1], (k, 1)),
        jnp.exp(0.5 * jax.random.normal(keys[2], (k, 1, 1)) - 0.5),
    )


@pytest.fixture(scope="module")
def task():
    return meta_prior(measured, ["x"])


@pytest.fixture(scope="module")
def untrained(task):
    return distribution_transformer(jax.random.key(0), task, width=32, layers=1, examples=2048)


@pytest.fixture(scope="module")
def shaken(untrained):
    """With random weights everywhere: a fresh network is the identity."""
    leaves, tree = jax.tree.flatten(untrained)
    rng = np.random.default_rng(2)
    return tree.unflatten(
        [x + jnp.asarray(0.2 * rng.normal(size=x.shape), x.dtype) for x in leaves]
    )


@pytest.fixture(scope="module")
def fit(task, untrained):
    loss = PosteriorLoss(task, batch=128, draws=8, prior_weight=0.1)
    return models.amortized.train(
        jax.random.key(1), untrained, loss, 600, learning_rate=5e-3, every=300, progress=False
    )


@pytest.fixture(scope="module")
def net(fit):
    assert fit.status.ok
    return fit.params


@pytest.fixture(scope="module")
def judged(net):
    """KL to the exact posterior on new problems, to that of another prior, and to the prior."""

    @jax.jit
    @jax.vmap
    def run(key):
        keys = jax.random.split(key, 7)
        prior, other, few, many = (
            random_prior(k, n) for k, n in zip(keys[:4], (3, 3, 2, 5), strict=True)
        )
        out = {}
        for name, p in (("same", prior), ("few", few), ("many", many)):
            x = p.sample(keys[4])
            z = x + NOISE * jax.random.normal(keys[5], (1,))
            q = net(p, {"z": z})
            out[name] = kl(exact(p, z), q.posterior, keys[6])
            if name == "same":
                out["outside"] = q.outside
                out["other prior"] = kl(exact(other, z), q.posterior, keys[6])
                out["far"] = kl(exact(other, z), net(other, {"z": z}).posterior, keys[6])
                near = Mixture(prior.logits[::-1], prior.means + 0.3, 1.3 * prior.factors)
                out["near"] = kl(exact(near, z), net(near, {"z": z}).posterior, keys[6])
                out["near, not told"] = kl(exact(near, z), q.posterior, keys[6])
                hidden = net(p, {"z": z}, {"z": jnp.zeros(1, bool)})
                out["no data"] = kl(p, hidden.posterior, keys[6])
                out["copy"] = kl(p, hidden.prior, keys[6])
        return out

    return jax.tree.map(np.asarray, run(jax.random.split(jax.random.key(2), 300)))


def upper(x):
    """Upper end of the 95 % interval of the mean."""
    return x.mean() + 1.96 * x.std() / np.sqrt(len(x))


@pytest.mark.slow
def test_reaches_the_posterior(judged):
    assert upper(judged["same"]) < 0.03
    assert judged["outside"].mean() < 0.1


@pytest.mark.slow
def test_other_numbers_of_components(judged):
    assert upper(judged["few"]) < 0.06
    assert upper(judged["many"]) < 0.06


@pytest.mark.slow
def test_without_data_the_prior_remains(judged):
    assert upper(judged["no data"]) < 0.03
    assert upper(judged["copy"]) < 0.03


@pytest.mark.slow
def test_a_swapped_prior_changes_the_answer(judged):
    """Another prior that the datum fits, and one that has nothing to do with it."""
    assert upper(judged["near"]) < 0.04
    assert judged["near, not told"].mean() > 5 * judged["near"].mean()
    assert judged["other prior"].mean() > 5 * judged["far"].mean()


@pytest.fixture(scope="module")
def answers(shaken):
    """The same problem in several ways, and others that the network was not made for."""
    prior, z = random_prior(jax.random.key(3)), jnp.array([[0.5], [-1.0], [0.1]])
    order = jnp.array([2, 0, 1])
    yes = jnp.array([True, False, True])
    moved = Mixture(prior.logits, prior.means + 40.0, prior.factors)
    cases = {
        "plain": (prior, z, jnp.ones(3, bool)),
        "components": (prior.permuted(order), z, jnp.ones(3, bool)),
        "observations": (prior, z[order], jnp.ones(3, bool)),
        "hidden": (prior, z, yes),
        "hidden NaN": (prior, z.at[1].set(jnp.nan), yes),
        "one": (prior, z, jnp.array([True, False, False])),
        "far prior": (moved, z, jnp.array([True, False, False])),
        "far datum": (prior, z.at[0].set(60.0), jnp.array([True, False, False])),
        "NaN": (prior, z.at[0].set(jnp.nan), jnp.array([True, False, False])),
        "none": (prior, z.at[0].set(jnp.nan), jnp.zeros(3, bool)),
    }
    points = jnp.linspace(-5.0, 5.0, 11)[:, None]

    @jax.jit
    @jax.vmap
    def run(case):
        prior, z, observed = case
        answer = shaken(prior, {"z": z}, {"z": observed})
        return jax.vmap(answer.posterior.log_prob)(points), answer.outside

    log_prob, outside = run(jax.tree.map(lambda *x: jnp.stack(x), *cases.values()))
    return dict(zip(cases, np.asarray(log_prob), strict=True)), dict(
        zip(cases, np.asarray(outside), strict=True)
    )


def test_order_does_not_matter_and_hidden_is_absent(answers):
    log_prob, _ = answers
    plain = log_prob["plain"]
    for same in ("components", "observations"):
        np.testing.assert_allclose(log_prob[same], plain, atol=1e-4)
    np.testing.assert_array_equal(log_prob["hidden"], log_prob["hidden NaN"])
    for other in ("hidden", "one", "none"):
        assert np.abs(log_prob[other] - plain).max() > 1e-2


def test_flags(answers):
    """Trained on at most one datum, and on none."""
    _, outside = answers
    assert not outside["one"] and not outside["none"]
    for far in ("plain", "far prior", "far datum", "NaN"):
        assert outside[far], far


def test_a_filter_is_a_loop(shaken):
    dynamics = LinearDynamics(jnp.array([[0.9]]), jnp.array([[0.3]]), jnp.array([0.1]))
    prior, zs = random_prior(jax.random.key(6)), jnp.array([0.3, 1.0, -0.5])[:, None, None]
    seen = {"z": jnp.array([[True], [False], [True]])}

    @jax.jit
    def run(prior):
        out = filtering(jax.random.key(0), shaken, prior, {"z": zs}, dynamics, observed=seen)
        loop = []
        for t in range(3):
            after = shaken(prior, {"z": zs[t]}, {"z": seen["z"][t]}).posterior
            loop.append((prior, after))
            prior = after.moved(dynamics.matrix, dynamics.noise, jnp.array([0.1]))
        return out, loop, prior

    out, loop, last = run(prior)
    for t, both in enumerate(loop):
        for got, wanted in zip((out.predicted, out.posterior), both, strict=True):
            for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
                np.testing.assert_allclose(x[t], y, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(out.next.means, last.means, rtol=2e-4, atol=2e-4)
    assert np.isnan(out.ess).all() and (np.asarray(out.predict_error) == 0).all()


def test_shapes_that_cannot_work_are_errors(untrained):
    prior, z = random_prior(jax.random.key(3)), jnp.zeros((1, 1))
    wrong = (
        (prior, {"y": z}, "all sources by these names"),
        (gaussian(jnp.zeros(2), jnp.eye(2)), {"z": z}, "trained on a mixture prior of 3"),
        (prior, {"z": jnp.zeros(())}, "array"),
    )
    for p, data, says in wrong:
        with pytest.raises(ValueError, match=says):
            jax.eval_shape(untrained, p, data)


@pytest.mark.slow
def test_a_filter_stays_near_the_exact_one(net):
    """Depth 30 against the Gaussian-sum filter, and the errors that the filter itself reports."""
    dynamics = LinearDynamics(jnp.array([[0.9]]), jnp.array([[0.3]]))
    prior = random_prior(jax.random.key(6))
    key_x, key_z = jax.random.split(jax.random.key(7))
    steps = np.sqrt(0.3) * np.asarray(jax.random.normal(key_x, (30,)))
    x = [float(prior.loc[0])]
    for step in steps[1:]:
        x.append(0.9 * x[-1] + step)
    zs = jnp.asarray(x)[:, None] + NOISE * jax.random.normal(key_z, (30, 1))

    def log_likelihood(x, data):
        return dist.Normal(x[0], NOISE).log_prob(data["z"][0, 0])

    @jax.jit
    def run(key):
        return filtering(
            key, net, prior, {"z": zs[:, None]}, dynamics, log_likelihood=log_likelihood
        )

    out = run(jax.random.key(8))

    def step(p, inputs):
        z, q, key = inputs
        right = exact(p, z)
        return dynamics(key, right)[0], kl(right, q, key)

    @jax.jit
    def compare(posterior, key):
        return jax.lax.scan(step, prior, (zs, posterior, jax.random.split(key, 30)))[1]

    kls = np.asarray(compare(out.posterior, jax.random.key(9)))
    assert kls[20:].mean() < 0.1
    assert np.all(np.asarray(out.ess) > 0.5) and np.mean(out.update_error) < 0.05
    assert np.all(np.asarray(out.predict_error) == 0)


@pytest.mark.slow
def test_an_answer_is_a_proposal(net, task):
    """Importance sampling with it: an unbiased evidence, nearly equal weights, a small k-hat."""
    prior, z = random_prior(jax.random.key(4)), jnp.array([0.4])
    answer = net(prior, {"z": z[None]})
    fixed = {"logits": prior.logits, "means": prior.means, "scales": prior.factors}
    target = ppl.Target(measured, (), fixed | {"seen": jnp.int32(1), "z": z})
    algorithm = inference.Importance(2000, answer.proposal())
    particles = algorithm.run(jax.random.key(5), target)
    log_z = prior.update(z, jnp.eye(1), NOISE**2 * jnp.eye(1))[1]
    fixed = dist.Normal(0, 1).log_prob(prior.logits).sum() + np.log(0.8)
    fixed = fixed + dist.Normal(0, 2).log_prob(prior.means).sum()
    fixed = fixed + dist.LogNormal(-0.5, 0.5).log_prob(prior.factors).sum()
    share = particles.ess / 2000
    assert share > 0.9
    error = np.sqrt((1 / share - 1) / 2000)
    assert abs(particles.log_evidence - fixed - log_z) < 4 * error + 1e-4
    choices = {"x": jnp.array([0.2])}
    np.testing.assert_allclose(
        answer.log_prob(choices), answer.posterior.log_prob(jnp.array([0.2]))
    )
    assert answer.sample(jax.random.key(0), 7)["x"].shape == (7, 1)


@ppl.program
def positive(ctx):
    """A positive latent and a nuisance that the network is not asked for."""
    a = ctx.sample("a", dist.Gamma(5.0, 5.0))
    x = ctx.sample("x", dist.Gamma(a, 1.0))
    b = ctx.sample("b", dist.Normal(0.0, 0.5))
    z = ctx.sample("z", dist.Normal(jnp.log(x) + b, 0.5))
    return {"a": a}, {"z": z[None]}


def test_retained_draws_leave_the_score_unbiased():
    """E[score] = E_p[-log q] for q far off, p by quadrature, in the coordinates of x > 0."""
    task = meta_prior(positive, ["x"])
    a, z = 1.3, 0.4
    u = np.linspace(-14, 5, 4001)
    log_prior = dist.Gamma(a, 1.0).log_prob(jnp.exp(jnp.asarray(u))) + u
    log_p = np.asarray(log_prior + dist.Normal(u, np.sqrt(0.5)).log_prob(z), float)
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    q = Mixture(jnp.zeros(2), jnp.array([[-0.5], [1.5]]), jnp.array([[[0.7]], [[0.5]]]))
    scores = -np.asarray(jax.vmap(q.log_prob)(jnp.asarray(u, float)[:, None]))
    truth = p @ scores
    rng = np.random.default_rng(0)
    n = 20_000
    drawn = rng.choice(u, n, p=p)
    # The nuisance given x and z is normal: precisions 4 and 4.
    b = (z - drawn) / 2 + rng.normal(size=n) * np.sqrt(0.125)

    @jax.jit
    @jax.vmap
    def run(key, u, b):
        rest = {"a": jnp.asarray(a, float), "b": b, "z": jnp.asarray(z, float)}
        problem = Problem(None, {}, None, u[None], rest)
        return jnp.stack([retained_score(key, task, problem, q, m) for m in (0, 8)])

    keys = jax.random.split(jax.random.key(0), n)
    plain, joined = np.asarray(run(keys, jnp.asarray(drawn, float), jnp.asarray(b, float)), float).T
    for score in (plain, joined):
        assert abs(score.mean() - truth) < 4 * score.std() / np.sqrt(n)
    assert joined.var() < plain.var()
    inside = task.layout.position({"x": jnp.exp(jnp.asarray(0.3, float))})
    np.testing.assert_allclose(inside, [0.3], rtol=1e-5)


def test_error_of_a_wrong_answer():
    """KL between two normals, from draws."""
    q = gaussian(jnp.zeros(1), jnp.eye(1))

    def log_joint(x):
        return gaussian(jnp.full(1, 0.3), 0.8 * jnp.eye(1)).log_prob(x) + 5.0

    error, ess = jax.jit(lambda key: error_of(key, q, log_joint, 20_000))(jax.random.key(0))
    closed = 0.5 * (0.8 + 0.09 - 1 - np.log(0.8))
    assert abs(error - closed) < 0.01
    assert 0.8 < ess < 0.97
