"""Tempered, waste-free and persistent samplers beside BlackJAX's, at equal particles and stages.

One logistic regression, one kernel (HMC with the same step size and number of leapfrog steps, in
BlackJAX's own implementation on both sides), resampling at every stage. A row is one whole run:
compiled before, blocked until the result is there, the two sides in turn with the same keys.

    python benchmarks/smc_samplers.py --particles 1024 --pairs 15
"""

import argparse
import time

import blackjax
import blackjax.smc.resampling as resampling
import jax
import jax.numpy as jnp
import numpy as np
from blackjax.smc import extend_params
from blackjax.smc.waste_free import waste_free_smc
from timing import Others, interval, paired

from feynkac import ppl
from feynkac.inference import Systematic, mcmc, samplers
from feynkac.ppl import dist

STEP, LEAPFROG, CHAIN = 0.15, 5, 8


def data(n, d):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, d))
    y = rng.uniform(size=n) < 1 / (1 + np.exp(-x @ rng.normal(size=d)))
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32)


@ppl.program
def regression(ctx, x, y):
    b = ctx.sample("b", dist.Normal(jnp.zeros(x.shape[1]), 1.0).to_event(1))
    ctx.observe("y", dist.Bernoulli(logits=x @ b), y)


def peers(x, y, n, exponents):
    """BlackJAX's samplers: whole runs, key -> log evidence (and stages)."""

    def log_prior(b):
        return dist.Normal(0.0, 1.0).log_prob(b).sum()

    def log_likelihood(b):
        return dist.Bernoulli(logits=x @ b).log_prob(y).sum()

    d = x.shape[1]
    shared = dict(
        logprior_fn=log_prior,
        loglikelihood_fn=log_likelihood,
        mcmc_step_fn=blackjax.hmc.build_kernel(),
        mcmc_init_fn=blackjax.hmc.init,
        mcmc_parameters=extend_params(
            dict(
                step_size=STEP,
                inverse_mass_matrix=jnp.ones(d),
                num_integration_steps=LEAPFROG,
            )
        ),
        resampling_fn=resampling.systematic,
    )

    def start(key):
        return jax.random.normal(key, (n, d))

    @jax.jit
    def adaptive(key):
        algorithm = blackjax.adaptive_tempered_smc(**shared, target_ess=0.5, num_mcmc_steps=1)
        key, key_start = jax.random.split(key)

        def one(carry):
            i, state, z = carry
            state, info = algorithm.step(jax.random.fold_in(key, i), state)
            return i + 1, state, z + info.log_likelihood_increment

        def going(carry):
            return carry[1].tempering_param < 1

        i, _, z = jax.lax.while_loop(
            going, one, (jnp.int32(0), algorithm.init(start(key_start)), jnp.zeros(()))
        )
        return z, i

    def fixed(algorithm, size=n):
        @jax.jit
        def run(key):
            key, key_start = jax.random.split(key)
            state = algorithm.init(start(key_start))

            def one(carry, inputs):
                state, z = carry
                i, exponent = inputs
                state, info = algorithm.step(jax.random.fold_in(key, i), state, exponent)
                more = getattr(info, "log_likelihood_increment", jnp.zeros(()))
                return (state, z + more), None

            steps = jnp.arange(exponents.shape[0])
            (state, z), _ = jax.lax.scan(one, (state, jnp.zeros(())), (steps, exponents))
            return (state.log_Z if hasattr(state, "log_Z") else z), len(exponents)

        return run

    wasteless = waste_free_smc(n, CHAIN)
    return {
        "tempered, adaptive": adaptive,
        "tempered, fixed": fixed(blackjax.tempered_smc(**shared, num_mcmc_steps=1)),
        "waste-free": fixed(
            blackjax.tempered_smc(**shared, num_mcmc_steps=None, update_strategy=wasteless)
        ),
        "persistent": fixed(
            blackjax.persistent_sampling_smc(**shared, n_schedule=len(exponents), num_mcmc_steps=1)
        ),
    }


def ours(x, y, n, exponents):
    """The same with this library."""
    target = ppl.Target(regression, (x, y))
    kernel = mcmc.HMC(ppl.select("b"), STEP, LEAPFROG)
    always = Systematic(ess_threshold=1.0)
    adaptive = samplers.AdaptiveStages(ess=0.5, max_stages=30)
    made = {
        "tempered, adaptive": samplers.Tempered(n, kernel, adaptive, always),
        "tempered, fixed": samplers.Tempered(n, kernel, exponents, always),
        "waste-free": samplers.WasteFree(n, kernel, CHAIN, exponents, always),
        "persistent": samplers.Persistent(n, kernel, exponents, always),
    }

    def run(sampler):
        def call(key):
            p = sampler.run(key, target)
            return p.log_evidence, jnp.sum(p.exponents < 1)

        return call

    return {name: run(sampler) for name, sampler in made.items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--particles", type=int, default=1024)
    parser.add_argument("--stages", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=15)
    options = parser.parse_args()
    x, y = data(200, 8)
    exponents = samplers.Power(options.stages, 3.0).exponents()
    mine = ours(x, y, options.particles, exponents)
    theirs = peers(x, y, options.particles, exponents)
    keys = list(jax.random.split(jax.random.key(0), options.pairs + 3))
    print(f"N = {options.particles}, {options.stages} stages; seconds are medians of whole runs")
    print(
        "| sampler | ours s | BlackJAX s | ratio [95 %] | log Z ours | BlackJAX "
        "| compile s ours | BlackJAX | others |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in mine:
        calls = {"ours": mine[name], "peer": theirs[name]}
        compiling = {}
        for side, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call(keys[0]))
            compiling[side] = time.perf_counter() - start
        seen = {side: [] for side in calls}

        def kept(side, call, seen=seen):
            def run(key):
                result = call(key)
                seen[side].append(result)
                return result

            return run

        with Others() as others:
            times = paired({s: kept(s, c) for s, c in calls.items()}, options.pairs, keys)
        z = {s: np.array([float(r[0]) for r in results]) for s, results in seen.items()}
        print(
            f"| {name} | {np.median(times['ours']):.4f} | {np.median(times['peer']):.4f} "
            f"| {interval(times['ours'], times['peer'])} "
            f"| {z['ours'].mean():.3f} ± {z['ours'].std():.3f} "
            f"| {z['peer'].mean():.3f} ± {z['peer'].std():.3f} "
            f"| {compiling['ours']:.1f} | {compiling['peer']:.1f} | {others.share:.0%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
