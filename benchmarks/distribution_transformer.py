"""The Distribution Transformer against exact answers, and its speed against compiled NUTS.

    python benchmarks/distribution_transformer.py --part inverse_gamma --checkpoint runs/dt

Parts: inverse_gamma, mixture, filter, gp, quantum (accuracy; train first, and go on from
`--checkpoint` if there is one) and speed (timed; uses the network of inverse_gamma). `--steps`
shortens training. Test problems have seeds of their own; intervals are over problems.
"""

import argparse
import time

import distribution_transformer_tasks as tasks
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from distribution_transformer_tools import (
    STEPS,
    as_proposals,
    inverse_gamma_kl,
    inverse_gamma_problems,
    mean,
    single,
    swapped_kl,
    table,
    trained,
    variances,
)

from feynkac.inference.diagnostics import ess
from feynkac.models.amortized.filtering import filtering
from feynkac.models.amortized.mixtures import gaussian
from feynkac.models.amortized.refit import LinearDynamics
from feynkac.ppl import dist


def inverse_gamma(options):
    """Rows D, H and K of the targets."""
    rows, proposals = [], []
    for which in ("narrow", "wide"):
        task = tasks.inverse_gamma(which)
        net, took, _ = trained(f"inverse_gamma_{which}", task, options, STEPS["inverse_gamma"])
        a, b, z = inverse_gamma_problems(which, 1000, 100)
        kl, outside = inverse_gamma_kl(net, a, b, z)
        rows.append(
            (which, mean(kl), f"{np.median(kl):.5f}", f"{kl.max():.4f}", outside.mean(), took)
        )
        if which == "wide":
            wrong = swapped_kl(net, a, b, z)
            moved = inverse_gamma_problems("shifted", 1000, 101)
            far, flagged = inverse_gamma_kl(net, *moved)
            rows.append(
                ("shifted meta-prior", mean(far), f"{np.median(far):.5f}", f"{far.max():.4f}",
                 flagged.mean(), "the wide network")
            )  # fmt: skip
            rows.append(
                ("wide, a wrong prior shown", mean(wrong, 3), f"{np.median(wrong):.3f}",
                 f"{wrong.max():.2f}", "", "the wide network")
            )  # fmt: skip
        for defended in (True, False):
            share, khat = as_proposals(net, task, a[:100], b[:100], z[:100], defended=defended)
            proposals.append(
                (which, "10 % twice as wide" if defended else "as it is", mean(share, 4),
                 f"{share.min():.3f}", f"{np.median(khat):.2f}", f"{np.mean(khat < 0.5):.2f}",
                 f"{khat.max():.2f}")
            )  # fmt: skip
    print("## Inverse gamma: KL(exact posterior || network), nats, 1,000 problems\n")
    table(("priors", "mean", "median", "max", "flagged", "training"), rows)
    print("As importance proposals, 4,000 draws for each of 100 problems:\n")
    table(
        ("priors", "proposal", "ESS / draw", "least", "median k-hat", "k-hat < 0.5", "largest"),
        proposals,
    )


def mixture_kls(net, d, k, keys):
    """KL(exact || network), closed-form posterior, 1,000 draws each; and the flags."""
    task = tasks.mixture(d, k)
    matrix, noise = tasks.sensor(d)

    @jax.jit
    @jax.vmap
    def one(key):
        key_problem, key_draws = jax.random.split(key)
        problem = task.draw(key_problem)
        exact, _ = problem.prior.update(problem.data["z"][0], matrix, noise)
        answer = net(problem.prior, problem.data)
        x = exact.sample(key_draws, (1000,))
        gap = jax.vmap(exact.log_prob)(x) - jax.vmap(answer.posterior.log_prob)(x)
        return jnp.mean(gap), answer.outside

    return one(keys)


def mixture_network(d, options):
    steps = STEPS["mixture"] if d == 1 else 2 * STEPS["mixture"]
    return trained(f"mixture_{d}", tasks.mixture(d, 5), options, steps)


def mixture(options):
    """Row F."""
    rows = []
    for d in (1, 2):
        net, took, _ = mixture_network(d, options)
        for k in (2, 5, 10):
            kl, outside = mixture_kls(net, d, k, jax.random.split(jax.random.key(200), 1000))
            kl = np.asarray(kl)
            rows.append(
                (d, k, mean(kl, 4), f"{np.median(kl):.4f}", f"{kl.max():.3f}",
                 np.mean(np.asarray(outside)), took if k == 5 else "")
            )  # fmt: skip
    print("## Mixture priors, linear-Gaussian likelihood: KL to the closed form, 1,000 problems\n")
    table(("d", "components (trained: 5)", "mean", "median", "max", "flagged", "training"), rows)


DYNAMICS = {
    1: (np.array([[0.95]]), np.array([[0.3]])),
    2: (np.array([[1.0, 0.3], [-0.3, 0.9]]), np.diag([0.05, 0.2])),
}


def filter_excess(net, d, depth, series):
    """-log q_t(x_t) of network, Gaussian-sum filter and without data, [series, depth]."""
    matrix, noise = tasks.sensor(d)
    move, jitter = (jnp.asarray(x, jnp.float32) for x in DYNAMICS[d])
    dynamics = LinearDynamics(move, jitter)
    task = tasks.mixture(d, 5)

    def exact(prior, data, observed=None):
        return Exact(prior.update(data["z"][0], matrix, noise)[0])

    def blind(prior, data, observed=None):
        return Exact(prior)

    class Exact:
        def __init__(self, posterior):
            self.posterior, self.outside = posterior, jnp.asarray(False)

    @jax.jit
    @jax.vmap
    def run(key):
        key_prior, key_noise, key_seen, key_filter = jax.random.split(key, 4)
        problem = task.draw(key_prior)
        root, wide = jnp.linalg.cholesky(jitter), jnp.linalg.cholesky(noise)

        def step(x, key):
            new = move @ x + root @ jax.random.normal(key, (d,))
            return new, x

        _, xs = jax.lax.scan(step, problem.position, jax.random.split(key_noise, depth))
        seen = jax.random.normal(key_seen, (depth, wide.shape[0]))
        data = {"z": (xs @ matrix.T + seen @ wide.T)[:, None]}

        def log_likelihood(x, data):
            return gaussian(matrix @ x, noise).log_prob(data["z"][0])

        scores = []
        for which in (net, exact, blind):
            out = filtering(key_filter, which, problem.prior, data, dynamics)
            scores.append(-jax.vmap(lambda q, x: q.log_prob(x))(out.posterior, xs))
        out = filtering(
            key_filter, net, problem.prior, data, dynamics, log_likelihood=log_likelihood, draws=200
        )
        return jnp.stack(scores), out.outside, out.update_error

    return tuple(np.asarray(x) for x in run(jax.random.split(jax.random.key(300), series)))


def filter(options):
    """Row G: excess score by depth, with the prior's loss and without."""
    rows, depth, series = [], 50, 400
    for d in (1, 2):
        for weight in (0.1, 0.0) if d == 1 else (0.1,):
            if weight:
                net, _, _ = mixture_network(d, options)
            else:
                net, _, _ = trained(
                    f"mixture_{d}_plain", tasks.mixture(d, 5), options, STEPS["mixture"],
                    prior_weight=0.0,
                )  # fmt: skip
            (ours, best, blind), outside, error = (
                x if i else x.transpose(1, 0, 2)
                for i, x in enumerate(filter_excess(net, d, depth, series))
            )
            for t in (0, 4, 9, 19, 34, 49):
                part = slice(max(0, t - 4), t + 1)
                gap = (ours - best)[:, part].mean(1)
                told = (blind - best)[:, part].mean()
                rows.append(
                    (d, "yes" if weight else "no", t + 1, mean(gap, 4), f"{gap.mean() / told:.4f}",
                     f"{error[:, part].mean():.4f}", f"{outside[:, part].mean():.3f}")
                )  # fmt: skip
    print("## As a filter: score against the Gaussian-sum filter, 400 series, last 5 steps\n")
    table(
        ("d", "prior loss", "depth", "excess, nats", "of what data tell",
         "its own error estimate", "flagged"), rows,
    )  # fmt: skip


def gp(options):
    """Predictive and hyperparameter of a Gaussian process, both exact by quadrature."""
    rows = []
    for latent in ("query", "lengthscale"):
        task = tasks.gaussian_process(latent)
        draws = 4 if latent == "query" else 8
        net, took, _ = trained(f"gp_{latent}", task, options, STEPS["gp"], draws=draws)

        @jax.jit
        @jax.vmap
        def run(key, net=net, task=task, latent=latent):
            problem = task.draw(key)
            alpha, beta = problem.prior["alpha"], problem.prior["beta"]
            pairs, at = problem.data["pairs"], problem.data["query"][0]
            x, y = pairs[:, :-1], pairs[:, -1]
            prior = dist.InverseGamma(alpha, beta)
            spot = beta / alpha * jnp.exp(jnp.linspace(-0.6, 0.6, 241))
            gram = jax.vmap(lambda s: tasks.kernel(x, x, s))(spot)
            gram = gram + tasks.JITTER * jnp.eye(len(y))[None]
            origin = jnp.zeros(len(y))
            seen = jax.vmap(lambda g: dist.MultivariateNormal(origin, g).log_prob(y))(gram)
            log_p = prior.log_prob(spot) + seen + jnp.log(spot)
            log_norm = jax.nn.logsumexp(log_p) + jnp.log(1.2 / 240)
            u = problem.position
            if latent == "query":
                m, v = jax.vmap(lambda s: tasks.predictive(s, x, y, at))(spot)
                each = dist.Normal(m, jnp.sqrt(v)).log_prob(u[0])
                exact = jax.nn.logsumexp(jax.nn.log_softmax(log_p) + each)
                blind = dist.Normal(0.0, jnp.sqrt(1 + tasks.JITTER)).log_prob(u[0])
            else:
                s = jnp.exp(u[0])
                gram = tasks.kernel(x, x, s) + tasks.JITTER * jnp.eye(len(y))
                exact = prior.log_prob(s) + u[0] - log_norm
                exact = exact + dist.MultivariateNormal(origin, gram).log_prob(y)
                blind = prior.log_prob(s) + u[0]
            answer = net(problem.prior, problem.data)
            return -answer.posterior.log_prob(u), -exact, -blind, answer.outside

        ours, best, blind, outside = (
            np.asarray(x) for x in run(jax.random.split(jax.random.key(400), 10_000))
        )
        rows.append(
            (latent, mean(ours, 4), mean(best, 4), mean(ours - best, 4), mean(blind - best, 4),
             f"{outside.mean():.3f}", took)
        )  # fmt: skip
    print("## Gaussian process of 5 inputs, 5 points: negative log scores, 10,000 problems\n")
    table(
        ("latent", "network", "exact", "paired gap (KL)", "prior's gap", "flagged", "training"),
        rows,
    )


def quantum(options):
    """A qubit's Hamiltonian from ten measurements, exact by quadrature."""
    task = tasks.quantum()
    net, took, _ = trained("quantum", task, options, STEPS["quantum"])

    u = jnp.linspace(-12.0, 12.0, 2001)
    d = jax.nn.sigmoid(u)

    @jax.jit
    @jax.vmap
    def told(problem):
        """KL(exact || prior). Apart from `run`: in one computation jaxlib 0.10.2 mixes up problems
        on a CPU (not with XLA_FLAGS=--xla_disable_hlo_passes=cse)."""
        log_p = jax.vmap(lambda u: task.log_joint(problem, u[None]))(u)
        log_p = log_p - jax.nn.logsumexp(log_p)
        prior = dist.Beta(problem.prior["alpha"], problem.prior["beta"])
        log_prior = prior.log_prob(d) + jnp.log(d) + jnp.log1p(-d)
        log_prior = log_prior - jax.nn.logsumexp(log_prior)
        return jnp.sum(jnp.exp(log_p) * (log_p - log_prior))

    @jax.jit
    @jax.vmap
    def run(key, problem):
        answer = net(problem.prior, problem.data)
        log_p = jax.vmap(lambda u: task.log_joint(problem, u[None]))(u)
        log_p = log_p - jax.nn.logsumexp(log_p)
        log_q = jax.vmap(lambda u: answer.posterior.log_prob(u[None]))(u)
        log_q_grid = log_q + jnp.log(u[1] - u[0])
        p = jnp.exp(log_p)
        draws = jax.nn.sigmoid(answer.posterior.sample(key, (200,))[:, 0])
        picked = jax.random.categorical(jax.random.fold_in(key, 1), log_p, shape=(200,))

        def close(x, y):
            return jnp.exp(-0.5 * ((x[:, None] - y[None]) / 0.2) ** 2)

        off = 1 - jnp.eye(200)
        both = [jnp.sum(close(x, x) * off) / (200 * 199) for x in (draws, d[picked])]
        mmd = both[0] + both[1] - 2 * jnp.mean(close(draws, d[picked]))
        return (
            jnp.sum(p * (log_p - log_q_grid)),
            mmd,
            answer.outside,
        )

    keys = jax.random.split(jax.random.key(500), 1000)
    problems = jax.jit(jax.vmap(task.draw))(keys)
    information = np.asarray(told(problems))
    kl, mmd, outside = (np.asarray(x) for x in run(keys, problems))
    print("## Quantum parameter: KL(exact || network), nats, 1,000 problems\n")
    row = (mean(kl, 4), f"{np.median(kl):.4f}", f"{kl.max():.3f}", mean(information, 3),
           mean(mmd, 4), f"{outside.mean():.3f}", took)  # fmt: skip
    table(("KL", "median", "max", "KL(exact || prior)", "squared MMD (width 0.2)", "flagged",
           "training"), [row])  # fmt: skip


def speed(options):
    """Row E: 1,000 problems, all compiled and blocked, at equal effective sample size."""
    task, n, wanted = tasks.inverse_gamma("wide"), options.problems, 300
    net, took, cpu = trained("inverse_gamma_wide", task, options, STEPS["inverse_gamma"])
    a, b, z = single(*inverse_gamma_problems("wide", n, 100))
    share, _ = as_proposals(net, task, *(np.asarray(x[:100]) for x in (a, b, z)))
    draws = int(np.ceil(wanted / share.mean()))

    @jax.jit
    def answer(key, a, b, z):
        def one(key, a, b, z):
            return net({"a": a, "b": b}, {"z": z[None]}).posterior.sample(key, (draws,))

        return jax.vmap(one)(jax.random.split(key, n), a, b, z)

    def log_density(a, b, z):
        def model():
            x = numpyro.sample("x", numpyro.distributions.InverseGamma(a, b))
            numpyro.sample("z", numpyro.distributions.Normal(0.0, jnp.sqrt(x)), obs=z)

        kernel = numpyro.infer.NUTS(model)
        return numpyro.infer.MCMC(kernel, num_warmup=500, num_samples=1000, progress_bar=False)

    part = min(200, n)

    @jax.jit
    def nuts(key, a, b, z):
        def one(key, a, b, z):
            mcmc = log_density(a, b, z)
            mcmc.run(key)
            return jnp.log(mcmc.get_samples()["x"])

        return jax.vmap(one)(jax.random.split(key, len(a)), a, b, z)

    def timed(call, repeats):
        start = time.perf_counter()
        result = jax.block_until_ready(call(jax.random.key(0)))
        first, times, cpus = time.perf_counter() - start, [], []
        for i in range(repeats):
            start, cpu = time.perf_counter(), time.process_time()
            result = jax.block_until_ready(call(jax.random.key(i + 1)))
            times.append(time.perf_counter() - start)
            cpus.append(time.process_time() - cpu)
        return result, first - min(times), float(np.median(times)), float(np.median(cpus))

    _, compiled, ours, ours_cpu = timed(lambda key: answer(key, a, b, z), 20)
    _, one_compiled, single_ours, _ = timed(
        lambda key: variances(net, a[:1], b[:1], z[:1]).posterior.means, 50
    )
    runs = [slice(i, i + part) for i in range(0, n, part)]
    chains, nuts_compiled, theirs, theirs_cpu = timed(
        lambda key: [nuts(key, a[i], b[i], z[i]) for i in runs], 3
    )
    chains = np.concatenate([np.asarray(x) for x in chains])
    effective = float(np.mean([float(ess(x[None])) for x in chains[:100]]))
    per_ess = theirs / n * wanted / effective
    ratio, cpu_ratio = per_ess / (ours / n), theirs_cpu / ours_cpu * wanted / effective
    print(f"## Speed, {n} problems, effective sample size {wanted} each, wide priors\n")
    table(
        ("", "compile, s", "ms a problem", "ESS", "ms at equal ESS"),
        [
            (f"network and {draws} draws", f"{compiled:.1f}", f"{1e3 * ours / n:.4f}", wanted,
             f"{1e3 * ours / n:.4f}"),
            ("network, one problem", f"{one_compiled:.1f}", f"{1e3 * single_ours:.3f}", "", ""),
            (f"NUTS 500 + 1,000, vmapped over {part}", f"{nuts_compiled:.1f}",
             f"{1e3 * theirs / n:.3f}", f"{effective:.0f}", f"{1e3 * per_ess:.3f}"),
        ],
    )  # fmt: skip
    print(f"Ratio at equal ESS: {ratio:.0f} (by CPU time {cpu_ratio:.0f}). Training: {took}.")
    print(f"Break-even: {cpu / (per_ess - ours / n):.0f} problems.")


PARTS = {f.__name__: f for f in (inverse_gamma, mixture, filter, gp, quantum, speed)}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=list(PARTS), required=True)
    parser.add_argument("--steps", type=int, help="of training, instead of each part's own")
    parser.add_argument("--checkpoint", help="a folder: networks in training, to go on from")
    parser.add_argument("--problems", type=int, default=1000, help="of the part speed")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    PARTS[options.part](options)
