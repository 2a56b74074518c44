"""Ways to the predictive of a Gaussian process of unknown length scale and scale; for `pfn.py`.

Each takes a data set x [n, d], y [n], queries q with the truth z and a key; gives log scores, nats.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from numpyro.infer import MCMC, NUTS
from scipy.stats import gamma


def hyper_ways(pfn, family, scores, n):
    """By name: the network, quadrature, what it may read (`scores`), MLE-II, NUTS; n points."""
    kernels = len(scores.kernels)
    names = sorted(family.laws())

    def log_prior(log_hyper):
        laws = family.laws()
        each = zip(names, jnp.exp(log_hyper), strict=True)
        return sum(laws[k].log_prob(value) for k, value in each) + jnp.sum(log_hyper)

    def log_joint(log_hyper, x, y):
        """Of the logs of the hyperparameters and the data, nats."""
        hyper = dict(zip(names, jnp.exp(log_hyper), strict=True))
        return log_prior(log_hyper) + family.process(hyper).law(x).log_prob(y)

    def score(log_hyper, x, y, q, z):
        hyper = dict(zip(names, jnp.exp(log_hyper), strict=True))
        return family.process(hyper).predictive(x, y, q).log_prob(z)

    def by_network(x, y, q, z, key):
        return pfn.answer(pfn.net, x, y, jnp.int32(n), q).log_prob(z)

    def by_maximum(x, y, q, z, key):
        """100 steps of Adam on the log joint density: MLE-II with the prior's help."""
        adam = optax.adam(0.1)

        def step(carry, _):
            at, state = carry
            slope = jax.grad(lambda v: -log_joint(v, x, y))(at)
            moved, state = adam.update(slope, state)
            return (at + moved, state), None

        start = jnp.log(jnp.array([family.laws()[k].mean for k in names]))
        (at, _), _ = jax.lax.scan(step, (start, adam.init(start)), length=100)
        return score(at, x, y, q, z)

    def by_quadrature(x, y, q, z, key):
        """Over both hyperparameters, by quantiles of their laws: the reference."""
        quantiles = (np.arange(24) + 0.5) / 24
        length, scale = (
            jnp.log(gamma(a, scale=1 / b).ppf(quantiles).astype(np.float32))
            for a, b in (family.lengthscale, family.scale)
        )
        grid = jnp.stack(jnp.meshgrid(length, scale), axis=-1).reshape(-1, 2)
        seen = jax.vmap(lambda v: log_joint(v, x, y) - log_prior(v))(grid)
        told = jax.vmap(lambda v: score(v, x, y, q, z))(grid)
        return jax.nn.logsumexp(jax.nn.log_softmax(seen)[:, None] + told, axis=0)

    def by_regressions(x, y, q, z, key):
        """The mixture of Student laws that the network reads, as it is."""
        loc, size = pfn.head.loc, pfn.head.scale
        solved, _ = scores.fit(pfn.standardized(x), (y[:, None] - loc) / size, jnp.ones(n, bool))
        told = scores.read(solved, pfn.standardized(q))[:, : 3 * kernels]
        told = told.reshape(len(q), kernels, 3)
        law = dist.StudentT(n + 1.0, loc + size * told[..., 0], size * jnp.exp(told[..., 1]))
        return jax.nn.logsumexp(law.log_prob(z[:, None]) + told[..., 2], axis=1)

    def by_nuts(draws):
        def run(x, y, q, z, key):
            kernel = NUTS(potential_fn=lambda v: -log_joint(v, x, y))
            chain = MCMC(kernel, num_warmup=draws, num_samples=draws, progress_bar=False)
            chain.run(key, init_params=jnp.zeros(len(names)))
            found = jax.vmap(lambda v: score(v, x, y, q, z))(chain.get_samples())
            return jax.nn.logsumexp(found, axis=0) - jnp.log(draws)

        return run

    return {
        "network": by_network,
        "quadrature": by_quadrature,
        "the regressions alone": by_regressions,
        "MLE-II": by_maximum,
        "NUTS 32+32": by_nuts(32),
        "NUTS 256+256": by_nuts(256),
    }
