"""Automatic guides: densities, conditionals, convergence to closed forms, NumPyro's guides."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from feynkac import inference, ppl
from feynkac.inference.vi import elbo, guides
from feynkac.inference.vi.fit import fit
from feynkac.inference.vi.guides.layout import layout

KEY = jax.random.key(0)


@ppl.program
def _unit(ctx, mean):
    return ctx.sample("x", dist.Normal(mean, 1.0))


@ppl.program
def varied(ctx, y):
    """Sites of many supports, some inside calls."""
    scale = ctx.sample("scale", dist.Gamma(2.0, 1.0))
    x = ctx.call("units", ppl.vmap(_unit), jnp.arange(2.0))
    p = ctx.sample("p", dist.Dirichlet(jnp.ones(3)))
    u = ctx.sample("u", dist.Uniform(-1.0, 2.0).expand([2]))
    ctx.sample("z", dist.Normal(0.0, 1.0))
    ctx.observe("y", dist.Normal(x.sum() + u.sum() + p[0], scale), y)


VARIED = ppl.Target(varied, (jnp.asarray(0.4),), {"z": jnp.asarray(1.0)})

# Regression with two coefficients and known noise: everything in closed form.
X = jnp.asarray([[1.0, 0.2], [1.0, 1.4], [1.0, -0.7], [1.0, 2.0]])
Y = jnp.asarray([0.3, 1.9, -1.2, 2.2])


@ppl.program
def regression(ctx, x, y):
    b = ctx.sample("b", dist.Normal(jnp.zeros(2), 1.5).to_event(1))
    ctx.observe("y", dist.Normal(x @ b, 0.5), y)


REGRESSION = ppl.Target(regression, (X, Y))


def posterior():
    """Mean, covariance and log evidence of the regression."""
    x, y = np.asarray(X, float), np.asarray(Y, float)
    precision = x.T @ x / 0.25 + np.eye(2) / 2.25
    cov = np.linalg.inv(precision)
    of_y = 2.25 * x @ x.T + 0.25 * np.eye(4)
    log_z = -0.5 * (y @ np.linalg.solve(of_y, y) + np.linalg.slogdet(2 * np.pi * of_y)[1])
    return cov @ x.T @ y / 0.25, cov, log_z


def kl(mean, cov, other_mean, other_cov):
    """KL(N(mean, cov), N(other_mean, other_cov)), nats."""
    inverse, d = np.linalg.inv(other_cov), np.asarray(mean) - other_mean
    dets = np.linalg.slogdet(other_cov)[1] - np.linalg.slogdet(cov)[1]
    return 0.5 * (np.trace(inverse @ cov) + d @ inverse @ d - len(d) + dets)


def shaken(tree, size=0.3):
    """Every leaf moved, so that nothing is right by being zero."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    moved = [x + size * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return structure.unflatten(moved)


@pytest.fixture(scope="module")
def varied_guides():
    made = [
        guides.mean_field(VARIED),
        guides.full_rank(VARIED),
        guides.low_rank(VARIED, 2, key=KEY),
    ]
    return [shaken(g) for g in made]


def test_sites_multiply_to_the_joint_law(varied_guides):
    place = layout(VARIED)
    for guide in varied_guides:
        joint = guides.law(guide).joint()
        z = joint.sample(KEY)
        choices, log_volume = place.choices(z)
        np.testing.assert_allclose(place.position(choices), z, rtol=1e-4, atol=1e-4)
        log_q, _ = guide.assess(choices)
        np.testing.assert_allclose(log_q, joint.log_prob(z) - log_volume, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
def test_guides_propose_and_their_marginals_are_conditioned(varied_guides):
    """Weights are ratios of densities; a marginal integrates out what is drawn later."""
    for guide in varied_guides[1:]:
        trace = guide.simulate(KEY, *VARIED.args)
        assert set(trace.choices) == {"scale", "units", "p", "u"}
        log_p = VARIED.log_density(trace.choices)
        run = inference.Importance(1, ppl.Proposal(init=guide)).run_conditional
        weight = run(KEY, VARIED, trace.choices).log_evidence
        np.testing.assert_allclose(weight, log_p - trace.score, rtol=1e-4, atol=1e-3)
    # The law of `u` and `p` given `scale` and `units`: for a normal law a ratio of closed forms.
    guide = varied_guides[1]
    first = guide.simulate(KEY).choices
    kept = {name: first[name] for name in ("scale", "units")}
    marginal = ppl.marginal(
        guide, ppl.select("scale") | ppl.select("units"), inference.Importance(1)
    )
    joint, place = guides.law(guide).joint(), layout(VARIED)
    z, log_volume = place.position(first), jnp.zeros(())
    for site in place.sites[:2]:
        x = site.part(z)
        log_volume += site.transform.log_abs_det_jacobian(x, site.transform(x))
    exact = dist.MultivariateNormal(joint.mean[:3], joint.covariance_matrix[:3, :3]).log_prob(z[:3])
    found = marginal.estimate_logpdf(KEY, kept)
    np.testing.assert_allclose(found, exact - log_volume, rtol=1e-4, atol=1e-3)


def test_full_rank_converges_to_the_conjugate_posterior():
    """KL(guide, posterior) < 1e-3 nats; there the ELBO is the log evidence, draw by draw."""
    mean, cov, log_z = posterior()
    found = fit(
        KEY, elbo, guides.full_rank(REGRESSION), (REGRESSION,), samples=16, steps=1000, every=500,
        optimizer=optax.adam(optax.exponential_decay(0.1, 100, 0.5)), progress=False,
    )  # fmt: skip
    law = guides.law(found.params)
    fitted = np.asarray(law.scale_tril @ law.scale_tril.T, float)
    assert 0 <= kl(law.loc, fitted, mean, cov) + 1e-6 < 1e-3
    assert abs(found.values[-50:].mean() - log_z) < 1e-2
    assert found.values[-50:].std() < 0.05
    # And what starts elsewhere is far: the bound is not met by chance.
    started = guides.law(guides.full_rank(REGRESSION))
    assert kl(started.loc, np.asarray(started.scale_tril @ started.scale_tril.T), mean, cov) > 1


@pytest.mark.slow
def test_laplace_is_exact_for_a_normal_posterior():
    mean, cov, log_z = posterior()
    guide = guides.laplace(REGRESSION, steps=40)
    law = guides.law(guide)
    assert abs(kl(law.loc, np.asarray(law.scale_tril @ law.scale_tril.T, float), mean, cov)) < 1e-4
    weighted = inference.Importance(8, ppl.Proposal(init=guide)).run(KEY, REGRESSION)
    np.testing.assert_allclose(weighted.log_weights, log_z, atol=1e-3)
    with pytest.raises(ValueError, match="no maximum"):
        guides.laplace(REGRESSION, steps=1)


@pytest.mark.slow
def test_delta_is_maximum_a_posteriori():
    found = fit(
        KEY, elbo, guides.delta(REGRESSION), (REGRESSION,), steps=150, every=150, progress=False,
        optimizer=optax.adam(optax.exponential_decay(0.3, 20, 0.5)),
    )  # fmt: skip
    point = found.params.simulate(KEY)
    np.testing.assert_allclose(point.choices["b"], posterior()[0], atol=1e-2)
    assert point.score == 0


@pytest.mark.slow
def test_flow_density_inverts_its_draws():
    guide = shaken(guides.flow(VARIED, key=KEY, layers=2, hidden=(8,)), 0.2)
    trace = guide.simulate(KEY)
    np.testing.assert_allclose(guide.assess(trace.choices)[0], trace.score, rtol=1e-4, atol=1e-3)
    place = layout(VARIED)
    z, law = place.position(trace.choices), guide.law()

    def forward(x):
        for transform in law.transforms:
            x = transform(x)
        return x

    x = z
    for transform in reversed(law.transforms):
        x = transform.inv(x)
    log_det = jnp.linalg.slogdet(jax.jacfwd(forward)(x))[1]
    log_volume = place.choices(z)[1]
    exact = dist.Normal(0.0, 1.0).log_prob(x).sum() - log_det - log_volume
    np.testing.assert_allclose(trace.score, exact, rtol=1e-4, atol=1e-3)
    weight = inference.Importance(2, ppl.Proposal(init=guide)).run_conditional(
        KEY, VARIED, trace.choices
    )
    exact = VARIED.log_density(trace.choices) - trace.score
    assert jnp.min(jnp.abs(weight.log_weights - exact)) < 1e-3
    with pytest.raises(ppl.ProgramError, match="all its sites at once"):
        guide.generate(KEY, {"scale": trace.choices["scale"]})


class _Network(eqx.Module):
    """The exact answer of the regression, but for what is learned."""

    shift: jax.Array
    log_scale: jax.Array

    def __call__(self, x, y):
        precision = x.T @ x / 0.25 + jnp.eye(2) / 2.25
        mean = jnp.linalg.solve(precision, x.T @ y / 0.25)
        lower = jnp.linalg.cholesky(jnp.linalg.inv(precision))
        scales = jnp.log(jnp.diagonal(lower)) + self.log_scale
        return guides.FullRank(mean + self.shift, scales, jnp.tril(lower, -1))


@pytest.mark.slow
def test_an_amortized_guide_reads_the_data():
    guide = guides.amortized(REGRESSION, _Network(jnp.zeros(2), jnp.zeros(2)))
    for args in ((X, Y), (X, 2.0 * Y)):
        mean, cov, log_z = posterior() if args[1] is Y else (2 * posterior()[0], None, None)
        np.testing.assert_allclose(guides.law(guide, *args).loc, mean, rtol=1e-4)
        target = ppl.Target(regression, args)
        weighted = inference.Importance(8, ppl.Proposal(init=guide)).run(KEY, target)
        assert np.ptp(weighted.log_weights) < 1e-3
    bound = ppl.bind(guide, X, Y)
    assert bound.simulate(KEY).choices["b"].shape == (2,)
    wrong = guides.amortized(REGRESSION, lambda x, y: guides.MeanField(jnp.zeros(3), jnp.zeros(3)))
    with pytest.raises(ppl.ProgramError, match="3 coordinates; the target has 2"):
        wrong.simulate(KEY, X, Y)


def _numpyro_model(x, y):
    scale = numpyro.sample("scale", dist.Gamma(2.0, 1.0))
    b = numpyro.sample("b", dist.Normal(jnp.zeros(2), 1.5).to_event(1))
    numpyro.sample("y", dist.Normal(x @ b, scale), obs=y)


def _numpyro_guide(x, y):
    loc = numpyro.param("loc", jnp.full(2, 0.3))
    rate = numpyro.param("rate", jnp.asarray(2.0), constraint=dist.constraints.positive)
    numpyro.sample("b", dist.Normal(loc, 0.5).to_event(1))
    numpyro.sample("scale", dist.Gamma(2.0, rate))


@pytest.mark.slow
def test_numpyro_guides_are_guides():
    target = ppl.Target(ppl.from_numpyro(_numpyro_model, X, y=Y))
    by_hand = guides.from_numpyro(_numpyro_guide, X, Y, key=KEY)
    params = by_hand.bound[0]
    np.testing.assert_allclose(params["rate"], np.log(2.0), rtol=1e-6)  # free of constraints
    choices = {"b": jnp.asarray([0.1, 0.2]), "scale": jnp.asarray(0.7)}
    exact = dist.Normal(0.3, 0.5).log_prob(choices["b"]).sum() + dist.Gamma(2.0, 2.0).log_prob(0.7)
    np.testing.assert_allclose(by_hand.assess(choices)[0], exact, rtol=1e-5)
    auto = guides.from_numpyro(AutoNormal(_numpyro_model), X, Y, key=KEY)
    joint = guides.from_numpyro(AutoMultivariateNormal(_numpyro_model), X, Y, key=KEY)
    options = {"steps": 60, "every": 60, "optimizer": optax.adam(0.1), "progress": False}
    for guide in (by_hand, auto, joint):
        trace = guide.simulate(KEY)
        assert set(trace.choices) == {"b", "scale"}
        found = fit(KEY, elbo, guide, (target,), **options)
        assert found.values[-10:].mean() > found.values[:10].mean() + 1 and bool(found.status)
    for guide in (by_hand, auto):
        weight = inference.Importance(1, ppl.Proposal(init=guide)).run_conditional(
            KEY, target, choices
        )
        exact = target.log_density(choices) - guide.assess(choices)[0]
        np.testing.assert_allclose(weight.log_evidence, exact, rtol=1e-4)
    with pytest.raises(ppl.ProgramError, match="no density at given values"):
        joint.assess(choices)


@ppl.program
def _discrete(ctx):
    k = ctx.sample("k", dist.Bernoulli(0.5))
    ctx.sample("x", dist.Normal(k.astype(float), 1.0))


@ppl.program
def _dependent(ctx):
    top = ctx.sample("top", dist.Gamma(2.0, 1.0))
    ctx.sample("x", dist.Uniform(0.0, top))


def test_what_cannot_be_guided_is_an_error():
    with pytest.raises(ppl.ProgramError, match="'k' is discrete.*Enumerate"):
        guides.mean_field(_discrete)
    with pytest.raises(ppl.ProgramError, match="support of 'x' depends on other sites"):
        guides.mean_field(_dependent)
    assert layout(ppl.Target(_dependent, (), {"top": jnp.asarray(2.0)})).size == 1
    with pytest.raises(ppl.ProgramError, match="no free site"):
        guides.mean_field(ppl.Target(_dependent, (), {"top": 2.0, "x": 1.0}))
    guide = guides.mean_field(ppl.Target(_unit, (0.0,)))
    with pytest.raises(ppl.ProgramError, match="different sites.*'b'.*'x'"):
        fit(KEY, elbo, guide, (REGRESSION,), steps=1, progress=False)
