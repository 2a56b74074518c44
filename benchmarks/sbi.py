"""Posterior networks on tasks of the simulation-based inference benchmark, by its own measure.

C2ST as sbibm defines it (10,000 draws against 10,000 reference draws; 0.5 is best), its mean over
observations, beside the published NPE; the largest |z| of the draws by the reference's mean and
standard deviation (flows have tails that a log score does not see), with that of the reference; the
same after `correct`, which needs the program's density and is therefore another kind of answer; and
reference against reference, which says what the classifier makes of nothing.

    pip download sbibm==1.1.0 --no-deps && unzip -d wheel sbibm-1.1.0-py2.py3-none-any.whl
    python -m venv peer && peer/bin/pip install scikit-learn sbi
    cd benchmarks && python sbi.py --wheel ../wheel --sbi ../peer/bin/python --task two_moons

The network is chosen by its score on simulations kept apart, and never sees an observation.
"""

import argparse
import functools
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from sbi_tasks import TASKS, observation

from feynkac import ppl
from feynkac.models.amortized.correct import correct
from feynkac.models.amortized.density import mixture_density
from feynkac.models.amortized.flows import spline_flow
from feynkac.models.amortized.npe import npe
from feynkac.models.amortized.simulations import simulated

PEER = Path(__file__).resolve().with_name("sbi_peer.py")

PUBLISHED = {
    ("two_moons", 1000): 0.725,
    ("two_moons", 10000): 0.606,
    ("gaussian_linear", 1000): 0.694,
    ("gaussian_linear", 10000): 0.552,
    ("slcp", 1000): 0.975,
    ("slcp", 10000): 0.901,
    ("sir", 1000): 0.815,
    ("sir", 10000): 0.680,
}


def trained(task, simulations, args):
    """The network; the simulations are drawn once and no more."""
    spec = TASKS[task]
    if args.components:
        head = functools.partial(
            mixture_density, components=args.components, width=args.width, depth=args.depth
        )
    else:
        head = functools.partial(spline_flow, layers=args.layers, width=args.width, bins=args.bins)
    encoder = spec.encoder
    if args.summaries:
        encoder = functools.partial(encoder, outputs=args.summaries, width=4 * args.summaries)
    return npe(
        jax.random.key(args.seed),
        spec.program,
        [spec.observed],
        simulations=simulations,
        encoder=encoder,
        head=head,
        members=args.members,
        steps=args.steps,
        batch=args.batch,
        learning_rate=args.rate,
        patience=args.patience,
        progress=False,
    )


def peer(python, folder, *arguments):
    """What `sbi_peer.py` prints, run in a folder that takes the logs of the sbi package."""
    # Not beside this file (-P), which has the package's name.
    command = [Path(shutil.which(python)).absolute(), "-P", PEER, *arguments]
    return subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, check=True).stdout


def c2st(python, reference, draws):
    """By the peer's scikit-learn."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "draws.npz"
        np.savez(path, x=reference, y=draws)
        return json.loads(peer(python, folder, "c2st", path))["c2st"]


def peer_draws(args, task, simulations, observed, draws):
    """The sbi package's answers from the same number of simulations."""
    spec = TASKS[task]
    choices = simulated(jax.random.key(args.seed), spec.program, (), simulations)
    theta = np.asarray(choices["theta"], np.float32)
    x = np.asarray(jax.tree.leaves({k: v for k, v in choices.items() if k != "theta"})[0])
    bound = {"two_moons": 1.0, "slcp": 3.0}.get(task, np.inf)
    edge = np.full(theta.shape[1], bound, np.float32)
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "in.npz", Path(folder) / "out.npz"
        x = x.reshape(simulations, -1).astype(np.float32)
        np.savez(given, theta=theta, x=x, observations=np.stack(observed), low=-edge, high=edge)
        peer(args.sbi, folder, "npe", given, out, str(draws))
        return np.load(out)["draws"], float(np.load(out)["seconds"])


def far(draws, reference):
    """The largest |z| by the reference."""
    return np.abs((draws - reference.mean(axis=0)) / reference.std(axis=0)).max()


def measure(task, simulations, args):
    spec, began = TASKS[task], time.process_time()
    posterior = trained(task, simulations, args)
    spent = time.process_time() - began
    print(f"{task} {simulations}: {posterior}\n  trained in {spent:.0f} CPU-s", flush=True)
    rows, cases = [], [observation(args.wheel, task, i) for i in args.observations]
    others = [None] * len(cases)
    if args.peer:
        others, seconds = peer_draws(args, task, simulations, [x for x, _ in cases], args.draws)
        print(f"  sbi trained in {seconds:.0f} CPU-s", flush=True)
    for i, (x, reference), other in zip(args.observations, cases, others, strict=True):
        data = spec.data(jnp.asarray(x))
        key = jax.random.fold_in(jax.random.key(args.seed + 1), i)
        draws = np.asarray(posterior.sample(key, data, args.draws)["theta"])
        reference = reference[: args.draws]
        row = {"observation": i, "far": far(draws, reference), "inside": posterior.inside(data)}
        row["reference far"] = far(reference, reference)
        if args.sbi:
            row["c2st"] = c2st(args.sbi, reference, draws)
        if other is not None:
            row["c2st sbi"], row["sbi far"] = (
                c2st(args.sbi, reference, other),
                far(other, reference),
            )
        if args.correct:
            target = ppl.Target(spec.program, (), data)
            exact = correct(key, posterior, target, 3 * args.draws)
            again = np.asarray(exact.resample(key).choices["theta"])[: args.draws]
            row["ess"], row["k-hat"] = float(exact.ess) / len(exact.weights), exact.khat.k
            row["pilot ess"], row["fell back"] = exact.pilot_ess, exact.fell_back
            if args.sbi:
                row["c2st corrected"] = c2st(args.sbi, reference, again)
        rows.append({k: float(v) for k, v in row.items()})
        print("  " + "  ".join(f"{k} {v:.3g}" for k, v in rows[-1].items()), flush=True)
    for name in rows[0]:
        if name.startswith("c2st"):
            values = [row[name] for row in rows]
            error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
            print(
                f"  {name}: mean {np.mean(values):.3f} +- {error:.3f} over {len(values)} "
                f"observations (NPE published {PUBLISHED.get((task, simulations))})",
                flush=True,
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheel", required=True, help="folder of the unpacked sbibm wheel")
    parser.add_argument("--sbi", help="a Python with scikit-learn (and sbi), for C2ST")
    parser.add_argument("--peer", action="store_true", help="the sbi package's NPE beside it")
    parser.add_argument("--task", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--simulations", nargs="+", type=int, default=[10000])
    parser.add_argument("--observations", nargs="+", type=int, default=list(range(1, 11)))
    parser.add_argument("--draws", type=int, default=10000)
    parser.add_argument("--correct", action="store_true", help="importance-corrected answers too")
    parser.add_argument("--null", action="store_true", help="halves of the reference only")
    for name, value in (("layers", 5), ("width", 64), ("bins", 8), ("members", 1), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--components", type=int, help="of a mixture instead of a flow")
    parser.add_argument("--depth", type=int, default=2, help="of the mixture's perceptron")
    parser.add_argument("--summaries", type=int, help="of the encoder, if not its usual number")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--patience", type=int)
    args = parser.parse_args()
    for task in args.task:
        if args.null:
            for i in args.observations:
                _, reference = observation(args.wheel, task, i)
                halves = reference[::2], reference[1::2]
                print(f"{task} {i}: reference against itself {c2st(args.sbi, *halves):.3f}")
            continue
        for simulations in args.simulations:
            measure(task, simulations, args)


if __name__ == "__main__":
    main()
