"""The network that ships, beside the exact predictive of its prior."""

import jax
import jax.numpy as jnp
import numpy as np

from feynkac.models import amortized
from feynkac.models.amortized import priors

PROCESS = priors.GaussianProcess(lengthscale=0.2, scale=1.0, noise=0.01)


def test_the_shipped_network_is_near_the_exact_predictive():
    pfn, sets = amortized.pretrained(), 300
    keys = jax.random.split(jax.random.key(77), sets)

    @jax.jit
    def drawn(keys):
        c = jax.vmap(lambda key: PROCESS.program(40).simulate(key).choices)(keys)
        return tuple(c[k][:, s] for s in (slice(20), slice(20, None)) for k in "xy")

    @jax.jit
    def gap(x, y, queries, z, n):
        law = pfn.answer(pfn.net, x, y, n, queries)
        exact = jax.vmap(PROCESS.predictive)(x, y, queries, jnp.arange(20)[None] < n[:, None])
        return jnp.mean(exact.log_prob(z) - law.log_prob(z), axis=1)

    gaps = np.asarray(gap(*drawn(keys), jnp.arange(sets, dtype=jnp.int32) % 21))
    # The mean is an expected KL divergence: 0.0034 over 4,000 data sets.
    assert gaps.mean() - 3 * gaps.std() / sets**0.5 < 0.0034
    assert gaps.mean() + 3 * gaps.std() / sets**0.5 < 0.03


def test_what_it_was_not_trained_for_is_flagged():
    pfn = amortized.pretrained()
    x, y = jnp.linspace(0.1, 0.9, 5)[:, None], jnp.sin(jnp.linspace(0.0, 3.0, 5))
    fine, far = pfn.condition(x, y), pfn.condition(x, 50.0 + y)
    queries = jnp.asarray([[0.3]])
    assert bool(fine.predict(queries).valid.all()) and not bool(far.predict(queries).valid.any())
