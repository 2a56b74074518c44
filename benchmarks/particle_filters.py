"""Bootstrap filters of three classical models, beside the same filters of other libraries.

    python benchmarks/particle_filters.py [--runs 20] [--cuthbert PYTHON] [--genjax PYTHON]
        [--particles PYTHON]

A hidden Markov model (4 states, 3 symbols), stochastic volatility and a linear-Gaussian model of
one dimension, T = 100, systematic resampling below half the particles; log evidence, states and
ancestors are stored. BlackJAX has no filter over time: its systematic resampling and effective size
are timed in a scan by hand. GenJAX's own filter resamples multinomially, so its moves (init,
extend, resample) are put in a scan; it tells no ancestors, weights are stored instead. Calls are
blocked, those of one process interleaved; the first call, which compiles, is listed apart. Peers
with `--` options run in environments of their own.
"""

import argparse
import json
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import timing

LENGTH = 100
MOVE = np.full((4, 4), 0.1) + 0.6 * np.eye(4)
EMIT = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.1, 0.2, 0.7], [0.3, 0.4, 0.3]])
SCALE, PERSIST, NOISE = 0.5, 0.95, 0.3


def data(kind):
    """Observations, the same for everyone."""
    rng = np.random.default_rng(5)
    x, z, ys = 0.0, 0, []
    for _ in range(LENGTH):
        x = PERSIST * x + NOISE * rng.normal()
        z = rng.choice(4, p=MOVE[z])
        if kind == "hmm":
            ys.append(rng.choice(3, p=EMIT[z]))
        elif kind == "volatility":
            ys.append(np.exp(x / 2) * rng.normal())
        else:
            ys.append(x + SCALE * rng.normal())
    return np.array(ys, np.int32 if kind == "hmm" else np.float32)


def log_normal(x, scale):
    """Log density of N(0, scale^2), nats."""
    return -0.5 * (x / scale) ** 2 - jnp.log(scale) - 0.5 * np.log(2 * np.pi).astype(np.float32)


def pieces(kind):
    """(first state, draw(key, state), log_likelihood(state, y)) in plain JAX, for the peers."""
    if kind == "hmm":
        moves, emits = jnp.log(jnp.asarray(MOVE, float)), jnp.log(jnp.asarray(EMIT, float))
        return (
            jnp.zeros((), jnp.int32),
            lambda key, z: jax.random.categorical(key, moves[z]).astype(jnp.int32),
            lambda z, y: emits[z, y],
        )

    def draw(key, x):
        return PERSIST * x + NOISE * jax.random.normal(key)

    if kind == "volatility":
        return jnp.zeros(()), draw, lambda x, y: log_normal(y, jnp.exp(x / 2))
    return jnp.zeros(()), draw, lambda x, y: log_normal(y - x, jnp.asarray(SCALE))


def ours(kind, n):
    """A call of a key with our filter."""
    from feynkac import inference, ppl
    from feynkac.ppl import dist

    def step(ctx, state, t, moves, emits, ys):
        if kind == "hmm":
            z = ctx.sample("x", ppl.Token(moves[state]))
            ctx.observe("y", ppl.Token(emits[z]), ys[t])
            return z
        x = ctx.sample("x", dist.Normal(PERSIST * state, NOISE))
        seen = dist.Normal(0.0, jnp.exp(x / 2)) if kind == "volatility" else dist.Normal(x, SCALE)
        ctx.observe("y", seen, ys[t])
        return x

    def init(ctx, moves, emits, ys):
        return pieces(kind)[0]

    tables = jnp.log(jnp.asarray(MOVE, float)), jnp.log(jnp.asarray(EMIT, float))
    target = ppl.Target(ppl.StateSpace(init, step, LENGTH), (*tables, jnp.asarray(data(kind))))
    smc = inference.SMC(n)
    return lambda key: smc.run(key, target).log_evidence


def blackjax(kind, n):
    """BlackJAX's resampling and effective size in a scan."""
    from blackjax.smc import ess, resampling

    first, draw, log_likelihood = pieces(kind)
    ys = jnp.asarray(data(kind))

    @jax.jit
    def call(key):
        def step(carry, y):
            key, x, log_w, log_z = carry
            key, key_draw, key_move = jax.random.split(key, 3)
            w = jax.nn.softmax(log_w)
            parents = jax.lax.cond(
                ess.ess(log_w) < n / 2,
                lambda: resampling.systematic(key_draw, w, n).astype(jnp.int32),
                lambda: jnp.arange(n, dtype=jnp.int32),
            )
            again = ess.ess(log_w) < n / 2
            log_w = jnp.where(again, 0.0, log_w)
            x = jax.vmap(draw)(jax.random.split(key_move, n), x[parents])
            new = log_w + jax.vmap(log_likelihood, (0, None))(x, y)
            gain = jax.nn.logsumexp(new) - jax.nn.logsumexp(log_w)
            return (key, x, new, log_z + gain), (x, parents)

        start = (key, jnp.full(n, first), jnp.zeros(n), jnp.zeros(()))
        (_, _, _, log_z), kept = jax.lax.scan(step, start, ys)
        return log_z, kept

    return lambda key: call(key)[0]


def cuthbert(kind, n):
    """A bootstrap filter of cuthbert's."""
    from cuthbert import filter as run_filter
    from cuthbert.smc import particle_filter
    from cuthbertlib.resampling import adaptive, systematic

    first, draw, log_likelihood = pieces(kind)
    built = particle_filter.build_filter(
        init_sample=lambda key: first,
        propagate_sample=lambda key, state, y: draw(key, state),
        log_potential=lambda before, state, y: log_likelihood(state, y),
        n_filter_particles=n,
        resampling_fn=adaptive.ess_decorator(systematic.resampling, 0.5),
    )
    ys = jnp.asarray(data(kind))

    @jax.jit
    def call(key):
        before, during = jax.random.split(key)
        return run_filter(built, ys, built.init_prepare(key=before), key=during)

    return lambda key: call(key).log_normalizing_constant[-1]


def genjax(kind, n):
    """A bootstrap filter of GenJAX's moves."""
    import genjax as library

    first = pieces(kind)[0]
    moves, emits = jnp.log(jnp.asarray(MOVE, float)), jnp.log(jnp.asarray(EMIT, float))

    @library.gen
    def step(state):
        if kind == "hmm":
            z = library.categorical(moves[state]) @ "x"
            library.categorical(emits[z]) @ "y"
            return z
        x = library.normal(PERSIST * state, NOISE) @ "x"
        loc, scale = (0.0, jnp.exp(x / 2)) if kind == "volatility" else (x, SCALE)
        library.normal(loc, scale) @ "y"
        return x

    ys = jnp.asarray(data(kind))

    def run():
        def move(particles, y):
            particles = jax.lax.cond(
                particles.effective_sample_size() < n / 2,
                lambda p: library.resample(p, method="systematic"),
                lambda p: p,
                particles,
            )
            states = particles.traces.get_retval()
            particles = library.extend(particles, step, states, {"y": y})
            return particles, (particles.traces.get_retval(), particles.log_weights)

        start = library.init(step, (first,), library.const(n), {"y": ys[0]})
        end, kept = jax.lax.scan(move, start, ys[1:])
        return end.log_marginal_likelihood(), kept

    call = jax.jit(library.seed(run))
    return lambda key: call(key)[0]


def particles(kind, n):
    """A bootstrap filter of `particles` (numpy)."""
    import particles as library
    from particles import distributions as dists
    from particles import state_space_models as models

    class Seen(dists.DiscreteDist):
        # `Categorical` has a density for one row of probabilities only.
        def __init__(self, z):
            self.z = z

        def logpdf(self, y):
            return np.log(EMIT[self.z, y])

    class Model(models.StateSpaceModel):
        def PX0(self):  # noqa: N802
            if kind == "hmm":
                return dists.Categorical(p=MOVE[0])
            return dists.Normal(scale=NOISE)

        def PX(self, t, xp):  # noqa: N802
            if kind == "hmm":
                return dists.Categorical(p=MOVE[xp])
            return dists.Normal(loc=PERSIST * xp, scale=NOISE)

        def PY(self, t, xp, x):  # noqa: N802
            if kind == "hmm":
                return Seen(x)
            if kind == "volatility":
                return dists.Normal(scale=np.exp(x / 2))
            return dists.Normal(loc=x, scale=SCALE)

    ys = data(kind)

    def call(key):
        np.random.seed(key)
        fk = models.Bootstrap(ssm=Model(), data=ys)
        run = library.SMC(fk=fk, N=n, resampling="systematic", ESSrmin=0.5, store_history=True)
        run.run()
        return run.logLt

    return call


LIBRARIES = {f.__name__: f for f in (ours, blackjax, cuthbert, genjax, particles)}


def measured(names, kind, n, runs):
    """By name: first call (s), median call (ms), mean log evidence and its standard error."""
    calls = {name: LIBRARIES[name](kind, n) for name in names}
    out, times, levels = {}, {name: [] for name in names}, {name: [] for name in names}
    keys = {name: list(range(runs)) for name in names}
    for name in names:
        if name != "particles":
            keys[name] = list(jax.random.split(jax.random.key(0), runs))
        start = time.perf_counter()
        jax.block_until_ready(calls[name](keys[name][0]))
        out[name] = time.perf_counter() - start
    for i in range(runs):
        for name in np.random.default_rng(i).permutation(names):
            start = time.perf_counter()
            level = jax.block_until_ready(calls[name](keys[name][i]))
            times[name].append(time.perf_counter() - start)
            levels[name].append(float(level))
    return {
        name: [
            out[name],
            1e3 * float(np.median(times[name])),
            float(np.mean(levels[name])),
            float(np.std(levels[name], ddof=1) / np.sqrt(runs)),
        ]
        for name in names
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 4096])
    parser.add_argument("--models", nargs="+", default=["hmm", "volatility", "gaussian"])
    parser.add_argument("--cuthbert", help="a Python with cuthbert (README.md)")
    parser.add_argument("--genjax", help="a Python with genjax (README.md)")
    parser.add_argument("--particles", help="a Python with particles and jax")
    parser.add_argument("--role", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        name, kind, n = options.role.split("/")
        print(json.dumps(measured([name], kind, int(n), options.runs)))
        return
    print(f"Milliseconds a run of {LENGTH} steps: medians of {options.runs}, first call apart;")
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}.\n")
    print("| model x N | library | ms | first call, s | log evidence |\n|---|---|---:|---:|---:|")
    for kind in options.models:
        for n in options.sizes:
            with timing.Others() as others:
                rows = measured(["ours", "blackjax"], kind, n, options.runs)
                for name in ("cuthbert", "genjax", "particles"):
                    if python := getattr(options, name):
                        command = [python, __file__, "--role", f"{name}/{kind}/{n}"]
                        command += ["--runs", str(options.runs)]
                        done = subprocess.run(
                            command, stdout=subprocess.PIPE, text=True, check=True
                        )
                        rows |= json.loads(done.stdout.splitlines()[-1])
            for name, (first, ms, level, error) in rows.items():
                label = "feynkac" if name == "ours" else name
                print(
                    f"| {kind} x {n} | {label} | {ms:.2f} | {first:.2f} | "
                    f"{level:.2f} +- {error:.2f} |",
                    flush=True,
                )
            print(f"| {kind} x {n} | (other processes' share) | {others.share:.0%} | | |")


if __name__ == "__main__":
    sys.exit(main())
