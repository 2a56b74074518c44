"""Posterior networks that read sets, in an ensemble, trained on fresh draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from compiling import OPTIMIZED

from feynkac import ppl
from feynkac.models.amortized.encoders import set_encoder
from feynkac.models.amortized.flows import spline_flow
from feynkac.models.amortized.npe import npe
from feynkac.models.amortized.simulations import simulated

KEY = jax.random.key(0)
SMALL = {"head": functools.partial(spline_flow, layers=2, width=16, bins=4), "progress": False}


@ppl.program
def _point(ctx, m):
    ctx.sample("y", dist.Normal(m, 1.0))


@ppl.program
def normal_points(ctx):
    m = ctx.sample("m", dist.Normal(0.0, 1.0))
    k = ctx.sample("k", dist.Bernoulli(0.5))
    ctx.call("points", ppl.vmap(_point), jnp.full(4, m + 2.0 * k.astype(float)))


@pytest.mark.slow
def test_sets_and_ensembles_learn_from_fresh_draws():
    """A latent mixture of two: the discrete one is integrated out; points come in any number."""
    posterior = npe(
        KEY,
        normal_points,
        ["points"],
        latents=["m"],
        masked=True,
        members=2,
        encoder=functools.partial(set_encoder, width=16, outputs=8, depth=1),
        steps=600,
        batch=128,
        learning_rate=5e-3,
        **SMALL,
    )
    trace = simulated(jax.random.key(5), normal_points, (), 800)
    y, m = np.asarray(trace["points"]["y"], np.float64), np.asarray(trace["m"], np.float64)
    for n in (4, 2):
        mask = jnp.arange(4) < n

        @functools.partial(jax.jit, compiler_options=OPTIMIZED)
        def scores(trace, mask=mask):
            def one(x):
                data = {"points": {"y": ppl.Partial(x["points"]["y"], mask)}}
                return posterior.at(data).assess({"m": x["m"]})[0]

            return jax.vmap(one)(trace)

        total, precision = y[:, :n].sum(axis=1), 1 + n
        means = np.stack([total, total - 2 * n]) / precision
        # Evidence of the mean of the points in each component.
        spread = 1 + 1 / n
        log_w = -0.5 * (total / n - np.array([[0.0], [2.0]])) ** 2 / spread
        log_w = log_w - np.logaddexp(*log_w)
        parts = log_w - 0.5 * precision * (m - means) ** 2 + 0.5 * np.log(precision / (2 * np.pi))
        gap = np.logaddexp(*parts) - np.asarray(scores(trace))
        error = gap.std() / np.sqrt(len(gap))
        assert -4 * error < gap.mean() < 0.06 + 4 * error, (n, gap.mean(), error)
