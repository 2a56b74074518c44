"""Training, tables and the inverse-gamma problem's checks, for `distribution_transformer.py`."""

import json
import time
from pathlib import Path

import distribution_transformer_tasks as tasks
import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from feynkac import inference, models, ppl
from feynkac.inference.diagnostics import psis
from feynkac.models.amortized.distribution_transformer import distribution_transformer
from feynkac.models.amortized.posterior_loss import PosteriorLoss

STEPS = {"inverse_gamma": 5000, "mixture": 4000, "gp": 4000, "quantum": 4000}
NETWORK = dict(width=48, layers=2, heads=4)


def trained(name, task, options, steps, batch=256, draws=16, rate=4e-3, prior_weight=0.1, **more):
    """A network, and what training took: CPU seconds of its steps, of compiling, and problems."""
    net = distribution_transformer(jax.random.key(0), task, **NETWORK | more)
    loss = PosteriorLoss(task, batch, draws, prior_weight)
    steps, every = options.steps or steps, 50
    folder = None if options.checkpoint is None else Path(options.checkpoint) / name
    notes = None if folder is None else folder.with_suffix(".json")
    spent = json.loads(notes.read_text()) if notes and notes.exists() else {"steps": 0, "cpu": 0.0}
    clock = {"last": time.process_time(), "chunks": []}

    def note(report):
        now = time.process_time()
        clock["chunks"].append(now - clock["last"])
        clock["last"] = now
        usual = float(np.median(clock["chunks"][1:] or clock["chunks"]))
        training = spent["cpu"] + usual * len(clock["chunks"])
        compiling = max(0.0, clock["chunks"][0] - usual)
        found = {"steps": report.step, "cpu": training, "compile": compiling, "loss": report.value}
        if notes is not None:
            notes.parent.mkdir(parents=True, exist_ok=True)
            notes.write_text(json.dumps(found))
        clock["found"] = found
        if options.verbose:
            print(f"{name} {report.step} {report.value:.4f} {training:.0f} s", flush=True)

    fit = models.amortized.train(
        jax.random.key(1),
        net,
        loss,
        steps,
        learning_rate=rate,
        every=every,
        checkpoint=folder,
        callback=note,
        progress=False,
        throw=True,
    )
    found = clock.get("found", spent)
    took = f"{steps} steps of {batch}, {found['cpu']:.0f} CPU s"
    return fit.params, f"{took}, compiled in {found.get('compile', 0.0):.0f}", found["cpu"]


def mean(x, digits=5):
    """Mean with its 95 % interval."""
    return f"{np.mean(x):.{digits}f} ± {1.96 * np.std(x) / np.sqrt(len(x)):.{digits}f}"


def table(head, rows):
    """Markdown."""
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(str(x) for x in row) + " |")
    print(flush=True)


def inverse_gamma_problems(which, n, seed):
    rng = np.random.default_rng(seed)
    shape, rate = tasks.META[which]
    a, b = (stats.invgamma(shape, scale=rate).rvs(n, random_state=rng) for _ in range(2))
    x = stats.invgamma(a, scale=b).rvs(random_state=rng)
    return a, b, rng.normal(size=n) * np.sqrt(x)


@jax.jit
def variances(net, a, b, z):
    """Answers to many inverse-gamma problems."""
    return jax.vmap(lambda a, b, z: net({"a": a, "b": b}, {"z": z[None]}))(a, b, z)


@jax.jit
def densities(mixtures, u):
    """Log densities of mixtures [n, ...] at points [n, m, d]."""
    return jax.vmap(lambda q, u: jax.vmap(q.log_prob)(u))(mixtures, u)


def single(*xs):
    return tuple(jnp.asarray(x, jnp.float32) for x in xs)


def inverse_gamma_kl(net, a, b, z):
    """KL(exact || network) of log x by the trapezoid rule, and the flags."""
    exact = stats.invgamma(a + 0.5, scale=b + z**2 / 2)
    low, high = np.log(exact.ppf(1e-9)), np.log(exact.isf(1e-9))
    u = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, 2001)
    log_p = stats.invgamma((a + 0.5)[:, None], scale=(b + z**2 / 2)[:, None]).logpdf(np.exp(u)) + u
    answers = variances(net, *single(a, b, z))
    log_q = np.asarray(densities(answers.posterior, *single(u[:, :, None])), float)
    return np.trapezoid(np.exp(log_p) * (log_p - log_q), u, axis=1), np.asarray(answers.outside)


def swapped_kl(net, a, b, z):
    """The same data with the next problem's prior in place of the right one, both ways."""
    a2, b2 = np.roll(a, 1), np.roll(b, 1)
    exact = stats.invgamma((a + 0.5)[:, None], scale=(b + z**2 / 2)[:, None])
    probe = np.random.default_rng(9).uniform(size=(1, 200))
    u = np.log(exact.ppf(probe))
    log_p = exact.logpdf(np.exp(u)) + u
    answers = variances(net, *single(a2, b2, z))
    return (log_p - np.asarray(densities(answers.posterior, *single(u[:, :, None])), float)).mean(1)


def as_proposals(net, task, a, b, z, draws=4000, defended=True):
    """Effective fraction and k-hat of importance sampling with the answers as proposals."""

    @jax.jit
    @jax.vmap
    def run(key, a, b, z):
        answer = net({"a": a, "b": b}, {"z": z[None]})
        target = ppl.Target(task.program, (), {"a": a, "b": b, "z": z})
        proposal = answer.proposal() if defended else ppl.Proposal(init=answer.program)
        algorithm = inference.Importance(draws, proposal)
        return algorithm.run(key, target).log_weights

    log_w = np.asarray(run(jax.random.split(jax.random.key(11), len(a)), *single(a, b, z)), float)
    w = np.exp(log_w - log_w.max(1, keepdims=True))
    return w.sum(1) ** 2 / (w**2).sum(1) / draws, psis(log_w)[1]
