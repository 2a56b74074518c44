"""Geweke's joint-distribution test: it passes what is right and sees what is wrong."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from feynkac import ppl
from feynkac.inference import mcmc
from feynkac.ppl import dist
from feynkac.ppl.laws.geweke import geweke

KEY = jax.random.key(71)
DATA = ppl.select("y")


@ppl.program
def normal(ctx, prior_scale):
    x = ctx.sample("x", dist.Normal(0.5, prior_scale))
    k = ctx.sample("k", dist.Bernoulli(probs=0.3))
    ctx.sample("y", dist.Normal(jnp.where(k == 1, x + 1, x), 1.0))


class Biased(eqx.Module):
    """MH that accepts everything with this probability, and is right otherwise."""

    share: jax.Array
    inner: mcmc.MH

    def __call__(self, key, target, trace):
        one, two, three = jax.random.split(key, 3)
        right = self.inner(one, target, trace)
        wrong, _, _ = target.regenerate(two, trace, self.inner.selection)
        return jax.tree.map(
            lambda a, b: jnp.where(jax.random.uniform(three) < self.share, a, b), wrong, right
        )


@pytest.mark.slow
def test_it_sees_a_small_error_and_none_where_there_is_none():
    for share, good in ((0.0, True), (0.3, False)):
        kernel = Biased(jnp.asarray(share, float), mcmc.MH(ppl.select("x")))
        args = (jnp.asarray(1.5, float),)
        result = geweke(KEY, kernel, normal, DATA, args=args, runs=2**12)
        assert result.ok == good, result
    assert "x" in result.z and "y^2" in result.z and "Look for" in result.advice


def _begin(ctx):
    theta = ctx.sample("theta", dist.Normal(0.0, 0.5))
    y = ctx.sample("y", dist.Normal(theta, 0.5))
    return jnp.stack([theta, y]), jnp.zeros((), bool)


def _step(ctx, state, t):
    """Ends by itself, the sooner the larger theta and the data; every step has a token."""
    numbers, _ = state
    end = ctx.sample("end", dist.Bernoulli(logits=numbers[0] + 0.5 * numbers[1]))
    ctx.sample("x", dist.Normal(numbers[0] + jnp.where(end == 1, 1.0, 0.0), 1.0))
    return numbers, end == 1


def _over(state):
    return state[1]


@pytest.mark.slow
def test_suffixes_of_texts_that_end_early():
    """The data feed back on the steps; lengths differ."""
    model = ppl.StateSpace(_begin, _step, 3, _over)
    kernel = mcmc.Sequence([mcmc.Suffix(), mcmc.MH(ppl.select("theta"))])
    geweke(KEY, kernel, model, DATA, runs=2**13).check()
    with pytest.raises(ppl.ProgramError, match=r"data \['x'\] may not happen"):
        geweke(KEY, kernel, model, ppl.select("x"))


def test_a_model_with_weights_or_without_data():
    @ppl.program
    def observed(ctx):
        x = ctx.sample("x", dist.Normal(0.0, 1.0))
        ctx.observe("y", dist.Normal(x, 1.0), 0.3)

    with pytest.raises(ppl.ProgramError, match="has to be normalised.*'y'"):
        geweke(KEY, mcmc.MH(ppl.select("x")), observed, DATA)
    with pytest.raises(ppl.ProgramError, match="^a selection names 'z', which is no site"):
        geweke(KEY, mcmc.MH(ppl.select("x")), normal, ppl.select("z"), args=(1.0,))
