"""Gradients of the evidence through resampling, against `jax.grad` of enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import tiny_models as tiny

from feynkac import inference, ppl
from feynkac.ppl import dist

KEY = jax.random.key(21)


def _propose(ctx, state, t, table, factors):
    table = jax.lax.stop_gradient(table)
    ctx.sample("token", ppl.Token(jnp.log(0.5 * table[state["mood"], state["last"]] + 1 / 6)))


def _propose_init(ctx, table, factors):
    ctx.sample("mood", dist.Bernoulli(probs=0.7))


# Draws that do not depend on the parameters: all of their gradient is in the weights.
PROPOSAL = ppl.Proposal(_propose, _propose_init)


def _target(theta):
    """Transitions and factors that depend on a parameter."""
    table = jax.nn.softmax(jnp.log(jnp.asarray(tiny.TABLE, float) + 1e-3) * theta, axis=-1)
    return ppl.Target(
        tiny.text().model, (table, theta * jnp.asarray(tiny.MILD, float)), tiny.text().constraints
    )


def _log_z(theta):
    """By going through every text."""
    total = []
    for mood, *tokens in itertools.product(range(2), *[range(3)] * tiny.LENGTH):
        end = tokens.index(tiny.END) if tiny.END in tokens else tiny.LENGTH
        if any(tokens[end:]):
            continue  # after the end only zeros
        choices = {"mood": jnp.int32(mood), "token": jnp.array(tokens, jnp.int32)}
        total.append(_target(theta).log_density(choices))
    return jax.nn.logsumexp(jnp.stack(total))


def _gradients(resampler, runs):
    smc = inference.SMC(4, resampler, PROPOSAL)

    @jax.jit
    @jax.vmap
    def one(key):
        return jax.grad(lambda th: jnp.exp(smc.run(key, _target(th)).log_evidence))(
            jnp.float32(1.1)
        )

    return np.asarray(one(jax.random.split(KEY, runs)), float)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [inference.Multinomial, inference.Systematic])
def test_the_gradient_of_the_evidence_is_unbiased(kind):
    exact = float(jax.grad(lambda th: jnp.exp(_log_z(th)))(jnp.float32(1.1)))
    values = _gradients(inference.StopGradient(kind(ess_threshold=1.0)), 2**14)
    z = (values.mean() - exact) / (values.std() / np.sqrt(len(values)))
    assert abs(z) < 4, (z, exact)


@pytest.mark.slow
def test_without_it_the_gradient_is_biased():
    """Nearly plain resampling drops the gradient of what selection accounts for."""
    exact = float(jax.grad(lambda th: jnp.exp(_log_z(th)))(jnp.float32(1.1)))
    soft = inference.Soft(inference.Multinomial(ess_threshold=1.0), share=0.99)
    values = _gradients(soft, 2**14)
    z = (values.mean() - exact) / (values.std() / np.sqrt(len(values)))
    assert abs(z) > 6, (z, exact)
