"""Marginals of a small spin glass by one network, against enumeration."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from feynkac.inference.vi.fit import fit
from feynkac.models import learned

pytestmark = pytest.mark.slow

SIZE, STEPS = 4, 1500
COUPLING = jnp.triu(jax.random.normal(jax.random.key(0), (SIZE, SIZE)), 1)


def log_f(x):
    spin = 2.0 * x.astype(float) - 1
    return spin @ COUPLING @ spin


def estimate(key, trained, blank):
    key_x, key_loss = jax.random.split(key)
    x = jax.random.randint(key_x, (64, SIZE), 0, 2, dtype=jnp.int32)

    def loss(head):
        return learned.marginal_consistency(key_loss, replace(blank, head=head), x)

    value, gradient = jax.value_and_grad(loss)(trained)
    return -value, jax.tree.map(jnp.negative, gradient)


def test_marginals_evidence_and_draws():
    blank = learned.Marginals.init(jax.random.key(1), log_f, SIZE, 2)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, STEPS))
    options = {"steps": STEPS, "every": STEPS, "progress": False, "optimizer": optimizer}
    found = fit(jax.random.key(2), estimate, blank.head, (blank,), **options)
    marginals = replace(blank, head=found.params)

    x = jnp.array(list(itertools.product([0, 1], repeat=SIZE)), jnp.int32)
    levels = np.asarray(jax.vmap(log_f)(x), float)
    parts = np.array(list(itertools.product([0, 1, 2], repeat=SIZE)))
    known = parts < 2
    agrees = ((np.asarray(x)[None] == parts[:, None]) | ~known[:, None]).all(2)
    exact = np.array([np.logaddexp.reduce(levels[row]) for row in agrees])
    log_mass = jax.vmap(marginals.log_mass)
    masses = log_mass(jnp.asarray(parts, jnp.int32), jnp.asarray(known))
    assert np.abs(masses - exact).max() < 0.05
    assert abs(float(marginals.log_evidence()) - np.logaddexp.reduce(levels)) < 0.05
    row, some = jnp.array([1, 0, 0, 1]), jnp.array([True, False, True, False])
    at = np.flatnonzero((parts == np.array([1, 2, 0, 2])).all(1))[0]
    log_z = np.logaddexp.reduce(levels)
    assert abs(float(marginals.log_marginal(row, some)) - (exact[at] - log_z)) < 0.1

    # As a proposal, corrected: unbiased for the evidence, and nearly even.
    draws, log_q = jax.vmap(marginals.sample)(jax.random.split(jax.random.key(3), 2000))
    z = np.exp(np.asarray(jax.vmap(log_f)(draws) - log_q) - log_z)
    assert abs(z.mean() - 1) < 4 * z.std() / len(z) ** 0.5
    assert z.std() < 0.1
