"""A network of a state given data to come as a twist, against the exact evidence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from feynkac import inference, ppl
from feynkac.models.amortized.encoders import plain_encoder
from feynkac.models.amortized.flows import spline_flow
from feynkac.models.amortized.lookahead import lookahead
from feynkac.models.amortized.npe import npe

T, N, NOISE, SEEN, PLACE = 12, 64, 0.3, 0.1, 2.5


@ppl.program
def stretch(ctx):
    """A place, how many steps are left, and what is seen then."""
    x = ctx.sample("x", dist.Normal(0.0, 2.0))
    left = ctx.sample("left", dist.DiscreteUniform(1, T))
    ctx.sample("y", dist.Normal(x, jnp.sqrt(left.astype(float) * NOISE**2 + SEEN**2)))


def init(ctx, y):
    return jnp.zeros(())


def step(ctx, x, t, y):
    x = ctx.sample("x", dist.Normal(x, NOISE))
    ctx.factor("end", jnp.where(t == T - 1, dist.Normal(x, SEEN).log_prob(y), 0.0))
    return x


def read(x, t, y):
    return {"x": x}, {"y": y, "left": jnp.asarray(T - t)}


@pytest.fixture(scope="module")
def trained():
    return npe(
        jax.random.key(0),
        stretch,
        ["y", "left"],
        latents=["x"],
        masked=True,
        encoder=functools.partial(plain_encoder, width=32, outputs=16, depth=1),
        head=functools.partial(spline_flow, layers=2, width=16, bins=4),
        steps=600,
        batch=256,
        learning_rate=5e-3,
        progress=False,
    )


@pytest.mark.slow
def test_the_evidence_is_kept_and_varies_less(trained):
    """A random walk that is seen at its end only, far from where it usually goes."""
    exact = dist.Normal(0.0, jnp.sqrt(T * NOISE**2 + SEEN**2)).log_prob(PLACE)
    target = ppl.Target(ppl.StateSpace(init, step, T), (jnp.asarray(PLACE),))
    spread = {}
    for name, twist in (("plain", None), ("twisted", lookahead(trained, read))):
        smc = inference.SMC(N, twist=twist)
        keys = jax.random.split(jax.random.key(2), 300)
        logs = jax.jit(jax.vmap(lambda k, smc=smc: smc.run(k, target).log_evidence))(keys)
        z = np.exp(np.asarray(logs, np.float64) - float(exact))
        assert abs(z.mean() - 1) < 4 * z.std() / len(z) ** 0.5, name
        spread[name] = z.std()
    assert spread["twisted"] < 0.5 * spread["plain"]


@pytest.mark.slow
@pytest.mark.parametrize("left", [1, 4, 12])
def test_it_is_the_probability_of_what_comes(trained, left):
    """Differences of log psi between states against the exact predictive."""
    sd = np.sqrt(left * NOISE**2 + SEEN**2)
    x = jnp.linspace(PLACE - 2 * sd, PLACE + 2 * sd, 9)
    twist = lookahead(trained, read)
    y = jnp.asarray(PLACE)
    log_psi = jax.vmap(lambda x: twist.log_psi(x, T - left, *twist.bound, y))(x)
    gap = np.asarray(log_psi - jax.vmap(dist.Normal(y, sd).log_prob)(x))
    assert np.std(gap) < 0.2


def test_a_network_of_whole_data_is_no_lookahead():
    whole = npe(jax.random.key(0), stretch, ["y"], latents=["x"], steps=1, batch=2, progress=False)
    with pytest.raises(ppl.ProgramError, match="masked=True"):
        lookahead(whole, read)
