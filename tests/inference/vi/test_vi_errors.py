"""What is said of bad input: the site and the remedy. And: nothing is compiled twice."""

import jax
import jax.numpy as jnp
import pytest
from compile_count import compiles

from feynkac import inference, ppl
from feynkac.inference import vi
from feynkac.ppl import dist

KEY = jax.random.key(0)


@ppl.program
def guide(ctx, p):
    ctx.sample("mu", dist.Normal(p, 1.0))
    ctx.sample("b", dist.Bernoulli(logits=p))


@ppl.program
def model(ctx):
    mu = ctx.sample("mu", dist.Normal(0.0, 1.0))
    b = ctx.sample("b", dist.Bernoulli(0.4))
    ctx.observe("y", dist.Normal(mu + b.astype(float), 1.0), 0.5)


@ppl.program
def one_site(ctx):
    ctx.sample("mu", dist.Normal(0.0, 1.0))


@ppl.program
def three_sites(ctx):
    model(ctx)
    ctx.sample("tau", dist.Exponential(1.0))


def shape_of(objective, strategies=None, params=None, target=model, **options):
    estimator = vi.surrogate(objective, strategies, **options)
    params = ppl.bind(guide, jnp.array(0.3)) if params is None else params
    return jax.eval_shape(lambda: estimator(KEY, params, ppl.Target(target)))


@pytest.mark.parametrize(
    ("strategies", "words"),
    [
        (None, ["'guide/b'", "no gradient strategy", "vi.Enumerate()", "vi.Score()"]),
        ({"guide": {"b": vi.Reparameterized()}}, ["'guide/b'", "not differentiable"]),
        ({"guide": {"b": vi.Score(), "mu": vi.Enumerate()}}, ["'guide/mu'", "finite support"]),
        ({"guide": {"b": vi.Score(), "nu": vi.Score()}}, ["'guide/nu'", "did you mean 'guide/mu'"]),
        ({"guide": {"b": vi.StraightThrough()}}, ["'guide/b'", "biased", "allow_biased=True"]),
        ({"guide": {"b": vi.Score, "mu": vi.Score()}}, ["'guide/b'", "vi.Score()"]),
    ],
)
def test_a_strategy_that_does_not_fit(strategies, words):
    with pytest.raises(ppl.ProgramError) as error:
        shape_of(vi.elbo, strategies)
    for word in words:
        assert word in str(error.value)


def test_sites_that_differ():
    score = {"guide": {"b": vi.Score()}}
    with pytest.raises(ppl.ProgramError, match="the target has 'tau'.*draw it in the guide"):
        shape_of(vi.elbo, score, target=three_sites)
    with pytest.raises(ppl.ProgramError, match="the guide draws 'b'.*ppl.marginal"):
        shape_of(vi.elbo, score, target=one_site)


def test_leave_one_out_needs_others():
    with pytest.raises(ValueError, match="samples=2 or more"):
        shape_of(vi.elbo, vi.Score(vi.LeaveOneOut()))
    with pytest.raises(ValueError, match="'particles/guide/b'.*at least 2"):
        shape_of(vi.iwelbo(1), {"guide": {"b": vi.Score(vi.LeaveOneOut())}})


def test_discrete_draws_inside_estimates():
    marginal = ppl.marginal(
        ppl.bind(guide, jnp.array(0.3)), ppl.select("mu"), inference.Importance(2)
    )
    with pytest.raises(ppl.ProgramError, match="'b'.*inside an estimated density"):
        shape_of(vi.elbo, params=marginal, target=one_site)
    assert shape_of(vi.elbo, {"guide": vi.Score()}, params=marginal, target=one_site).shape == ()
    filtered = ppl.marginal(ppl.bind(guide, jnp.array(0.3)), ppl.select("mu"), inference.SMC(2))
    with pytest.raises(ppl.ProgramError, match="'guide' has an estimated density"):
        shape_of(vi.elbo, {"guide": vi.Score()}, params=filtered, target=one_site)
    with pytest.raises(ppl.ProgramError, match="'guide' estimates its density by SMC"):
        shape_of(vi.elbo, params=filtered, target=one_site)


def test_misuse_of_the_context():
    @vi.objective
    def twice(ctx, guide, target):
        return ctx.draw("a", guide)[1] + ctx.draw("a", guide)[1]

    @vi.objective
    def raw(ctx, guide, target):
        return jnp.sum(jax.vmap(lambda _: ctx.draw("a", guide)[1])(jnp.zeros(2)))

    @vi.objective
    def vector(ctx, guide, target):
        return jnp.zeros(2)

    for objective, words in ((twice, "'a' appears twice"), (raw, "ctx.many")):
        with pytest.raises(ppl.ProgramError, match=words):
            shape_of(objective, vi.Score())
    with pytest.raises(ValueError, match="one real number"):
        shape_of(vector)
    with pytest.raises(ppl.ProgramError, match="instead of calling it"):
        vi.elbo(None, guide, model)
    with pytest.raises(ppl.ProgramError, match="not normalized"):
        shape_of(vi.elbo, params=ppl.Target(model))


def test_a_second_call_compiles_nothing():
    estimator = vi.value_and_grad(vi.elbo, vi.Score(vi.Running()))
    calls = [
        (jax.random.key(i), ppl.bind(guide, jnp.array(0.1 * i)), ppl.Target(model)) for i in (1, 2)
    ]
    value, grads = estimator(*calls[0])
    after = estimator.after(value)
    assert float(after.surrogate.plan.strategies.baseline.mean) == pytest.approx(float(value))
    with compiles() as seen:
        vi.value_and_grad(vi.elbo, vi.Score(vi.Running()))(*calls[1])
        after(*calls[1])
    assert seen.count == 0, seen.names
    assert jnp.isfinite(grads.bound[0])
