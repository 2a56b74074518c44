"""HMC, NUTS, MALA and the random walk: every kind of support, mixed with discrete sites."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import transforms

from feynkac import inference, ppl
from feynkac.inference import SMC, mcmc
from feynkac.inference.chains import MCMC
from feynkac.ppl import dist
from feynkac.ppl.laws.geweke import geweke

KEY = jax.random.key(61)


@ppl.program
def reading(ctx, scale):
    return ctx.sample("r", dist.Normal(0.0, scale))


@ppl.program
def wide(ctx, s):
    return ctx.sample("w", dist.Uniform(-s, 2 * s))


@ppl.program
def narrow(ctx, s):
    return ctx.sample("n", dist.Kumaraswamy(2.0, 1 + s))


SIMPLEX = dist.TransformedDistribution(
    dist.Normal(jnp.array([0.3, -0.2]), 0.6).to_event(1), transforms.StickBreakingTransform()
)


@ppl.program
def supports(ctx):
    """Supports that depend on other sites, a branch, a vmap, a simplex and a coin."""
    k = ctx.sample("k", dist.Bernoulli(probs=0.4))
    s = ctx.sample("s", dist.LogNormal(0.2, 0.5))
    u = ctx.sample("u", dist.Uniform(0.0, s))
    p = ctx.sample("p", SIMPLEX)
    part = ctx.call("part", ppl.cond(wide, narrow), k == 1, s)
    r = ctx.call("many", ppl.vmap(reading, in_axes=None, axis_size=2), 0.5 + u)
    ctx.sample("y", dist.Normal(part + r[0] - r[1] + 2 * p[0], 0.7))


MOVED = ppl.select("s", "u", "p", "part", "many")
KERNELS = {
    "HMC": mcmc.HMC(MOVED, 0.25, 4, 0.6),
    "NUTS": mcmc.NUTS(MOVED, 0.4, max_doublings=3),
}


def _functions(choices):
    s, p = choices["s"], choices["p"]
    part, r, y = choices["part"], choices["many"]["r"], choices["y"]
    own = part["true"]["w"] + part["false"]["n"]
    # Bounded, or with light tails: moments of ratios would not be normal.
    values = [s, choices["u"], choices["u"] / s, p[0], p[1] ** 2, own, jnp.tanh(r[0]), r[1] * y]
    return jnp.stack(
        [*values, jnp.cos(y), own * y, s * own, p[0] * y, choices["k"].astype(float) * own]
    )


@ppl.program
def small(ctx):
    k = ctx.sample("k", dist.Bernoulli(probs=0.4))
    s = ctx.sample("s", dist.LogNormal(jnp.where(k == 1, 0.4, -0.1), 0.5))
    u = ctx.sample("u", dist.Uniform(0.0, s))
    ctx.sample("y", dist.Normal(s - 2 * u, 0.7))


SMALL = {
    "f": lambda c: jnp.stack([c["s"], c["u"], c["u"] / c["s"], jnp.cos(c["y"]), c["u"] * c["y"]])
}


def test_geweke_hmc():
    """Supports that depend on other sites; the coin is held while they move."""
    kernel = mcmc.HMC(ppl.select("s", "u"), 0.3, 3, jnp.array([0.5, 2.0]))
    geweke(KEY, kernel, small, ppl.select("y"), functions=SMALL, runs=2**13).check()


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_geweke_on_every_support(name):
    kernel, y = KERNELS[name], ppl.select("y")
    functions = {"f": _functions}
    geweke(KEY, kernel, supports, y, functions=functions, runs=2**12, sweeps=3).check()


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernel",
    [mcmc.MALA(~ppl.select("k"), 0.1), mcmc.RandomWalk(~ppl.select(), 0.5)],
    ids=["MALA", "RandomWalk"],
)
def test_geweke_with_a_coin_held(kernel):
    """With everything selected a coin stays as it is."""
    geweke(KEY, kernel, small, ppl.select("y"), functions=SMALL, runs=2**13).check()
    target, keys = ppl.Target(small), jax.random.split(KEY, 500)
    start = jax.vmap(small.simulate)(keys).choices
    end = jax.jit(jax.vmap(lambda k: kernel(k, target, small.simulate(k)).choices))(keys)
    assert 0.3 < np.mean(np.asarray(end["u"] != start["u"])) < 1
    assert np.array_equal(end["k"], start["k"])


def _begin(ctx, ys):
    return ctx.sample("x0", dist.Normal(0.0, 1.0))


def _step(ctx, x, t, ys):
    x = ctx.sample("x", dist.Normal(0.8 * x, 0.6))
    ctx.observe("y", dist.Normal(x, 0.5), ys[t])
    return x


YS = jnp.array([0.9, -0.4, 1.3])


def walk():
    """Gaussian, and its exact posterior mean and covariance of (x0, x1, x2, x3)."""
    precision = np.zeros((4, 4))
    precision[0, 0] = 1.0
    for t in range(3):
        a = np.array([-0.8, 1.0])
        precision[t : t + 2, t : t + 2] += np.outer(a, a) / 0.36
        precision[t + 1, t + 1] += 1 / 0.25
    covariance = np.linalg.inv(precision)
    mean = covariance @ np.r_[0, np.asarray(YS) / 0.25]
    return ppl.Target(ppl.StateSpace(_begin, _step, 3), (YS,)), mean, covariance


def paths(choices):
    return np.concatenate([np.asarray(choices["x0"])[..., None], np.asarray(choices["x"])], -1)


@pytest.mark.slow
def test_tuned_chains_reach_a_gaussian_posterior():
    """Warm-up, chains and diagnostics together, against the closed form."""
    target, mean, covariance = walk()
    # Five steps of the size that is found are half a period: signs flip and sizes hardly mix.
    kernel = mcmc.HMC(~ppl.select(), 0.5, 3)
    warmed = mcmc.warmup(KEY, kernel, target, n_chains=16, steps=200)
    assert warmed.started.all() and 0.2 < warmed.kernel.step_size < 2
    assert warmed.kernel.inverse_mass.shape == (4,)
    chains = MCMC(warmed.kernel, 16, 300, 0, init=warmed.choices).run(KEY, target)
    assert chains.status and 0.6 < float(chains.acceptance.mean()) <= 1
    x = paths(chains.choices).reshape(-1, 4)
    ess = np.r_[chains.ess_bulk()["x0"], chains.ess_bulk()["x"]]
    z = (x.mean(0) - mean) / np.sqrt(np.diag(covariance) / ess)
    assert (np.abs(z) < 4).all(), z
    np.testing.assert_allclose(np.cov(x.T), covariance, atol=0.06)
    r_hat = np.r_[chains.r_hat()["x0"], chains.r_hat()["x"]]
    assert (r_hat < 1.02).all() and (ess > 500).all()


@pytest.mark.slow
def test_resample_move_with_gradients():
    """Inside a filter the kernel's target is the steps so far: the evidence stays unbiased."""
    target, mean, _ = walk()
    smc = SMC(4, inference.Multinomial(), kernel=mcmc.HMC(~ppl.select(), 0.3, 3))
    covariance = np.zeros((4, 4))
    covariance[0, 0] = 1.0
    for t in range(3):
        covariance[t + 1, : t + 1] = covariance[: t + 1, t + 1] = 0.8 * covariance[t, : t + 1]
        covariance[t + 1, t + 1] = 0.64 * covariance[t, t] + 0.36
    marginal = covariance[1:, 1:] + 0.25 * np.eye(3)
    y = np.asarray(YS)
    log_z = -0.5 * (y @ np.linalg.solve(marginal, y) + np.linalg.slogdet(2 * np.pi * marginal)[1])

    @jax.jit
    def one(key):
        p = smc.run(key, target)
        w = jnp.exp(p.log_weights - log_z)
        x = jnp.concatenate([p.choices["x0"][:, None], p.choices["x"]], 1)
        return jnp.concatenate([jnp.mean(w[:, None] * x, 0), jnp.mean(w)[None]])

    values = np.asarray(jax.vmap(one)(jax.random.split(KEY, 2**12)))
    z = (values.mean(0) - np.r_[mean, 1]) / (values.std(0) / np.sqrt(len(values)))
    assert (np.abs(z) < 4).all(), z


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (mcmc.HMC(ppl.select("k"), 0.1), "HMC.*'k' is discrete: use Gibbs or MH"),
        (mcmc.NUTS(ppl.select("s", "k"), 0.1), "NUTS.*'k' is discrete"),
        (mcmc.MALA(ppl.select(), 0.1), "MALA has nothing to move"),
        (mcmc.HMC(ppl.select("y"), 0.1), r"HMC has nothing to move.*fixes \['y'\]"),
        (mcmc.HMC(ppl.select("s", "u"), 0.1, 2, jnp.ones(3)), "2 coordinates"),
    ],
)
def test_errors(kernel, message):
    target = ppl.Target(supports, (), {"y": jnp.zeros(())})
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda key: kernel(key, target, supports.simulate(key)), KEY)


def test_only_discrete_sites_and_what_is_not_tuned():
    @ppl.program
    def coin(ctx):
        ctx.sample("k", dist.Bernoulli(probs=0.5))

    with pytest.raises(ppl.ProgramError, match=r"there is none in its selection; \['k'\] are"):
        kernel = mcmc.HMC(~ppl.select(), 0.1)
        jax.eval_shape(lambda key: kernel(key, ppl.Target(coin), coin.simulate(key)), KEY)
    with pytest.raises(ValueError, match="warmup tunes HMC and NUTS, got MALA"):
        mcmc.warmup(KEY, mcmc.MALA(MOVED, 0.1), supports)  # type: ignore
