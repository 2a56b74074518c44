"""`python -m feynkac demo`: a real language model under a hard constraint and a soft reward."""

import argparse
import re
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from rich.console import Console
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table

from .. import inference, models, ppl
from ..inference.particles import log_mean_exp
from .setup import ask, cache_compilations, loaded
from .show import evidence_line, picture, progress, report, text_table
from .story import source, steered

PROMPT = "Write one short sentence about a cat."
RULE = "no letter e, and only letters, spaces and , . ! ' in a text that ends within 32 tokens"
REWARD = "one nat for every word that begins with s"


def add_to(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "demo", help="steer SmolLM2 with a ten-line program, beside plain and rejection sampling"
    )
    parser.add_argument("--seeds", type=int, default=8, help="independent runs (default 8)")
    parser.add_argument(
        "--picture",
        default="feynkac-demo.png",
        help="where the genealogy goes (default %(default)s)",
    )
    parser.set_defaults(run=run)


def allowed(text: str) -> float:
    """The hard constraint on one token."""
    return float(re.fullmatch(r"[ a-df-zA-DF-Z,.!']*", text) is not None)


def reward(text: str) -> float:
    """The soft reward of one token, nats."""
    return float(re.match(r" [sS]", text) is not None)


def run(args: argparse.Namespace) -> int:
    """The demo; returns the exit status."""
    console = Console()
    if args.seeds < 1:
        console.print("--seeds is the number of independent runs: at least 1")
        return 2
    cache_compilations()
    started = time.perf_counter()
    lm = loaded(console, "smollm2-135m-instruct")
    console.print(
        Panel(
            Syntax(source(), "python", theme="ansi_dark", word_wrap=True),
            title="the program",
            title_align="left",
        )
    )
    console.print(
        f"[bold]Prompt[/bold]      {PROMPT}\n[bold]Constraint[/bold]  {RULE}\n[bold]Reward[/bold]  "
        f"    {REWARD}\n"
    )
    prompt = ask(lm, PROMPT, raw=False)
    allowed_table, reward_table = (models.token_table(lm, rule) for rule in (allowed, reward))
    story, smc = steered(lm, prompt, 32, 0.8, allowed_table, reward_table, ppl.Reject())
    unsteered = models.generation(lm, prompt, 32, temperature=0.8)
    plain = inference.Importance(smc.n_particles)
    filtered, smc_time = _runs(console, "SMC", smc, story, args.seeds)
    drawn, plain_time = _runs(console, "plain sampling", plain, unsteered, args.seeds)
    drawn = [weighed(particles, lm.eos, allowed_table, reward_table) for particles in drawn]
    pooled, baseline = inference.pool(*filtered), inference.pool(*drawn)
    report(console, lm, filtered, pooled, 8)
    console.print()
    unweighted = models.texts(lm, baseline.take(jnp.arange(6), jnp.zeros(6)))
    console.print(text_table("Plain sampling, the first six texts", unweighted, 6))
    console.print(_comparison(pooled, filtered, smc_time, baseline, drawn, plain_time))
    picture(lm, filtered[0], args.picture)
    console.print(f"Genealogy, effective sample size and evidence of the first run: {args.picture}")
    console.print(f"Total {time.perf_counter() - started:.0f} s", highlight=False)
    return 0 if pooled.status else 1


def weighed(
    particles: inference.Particles, eos: int, allowed: Array, reward: Array
) -> inference.Particles:
    """Plain draws with the weights of the steered target: what breaks the constraint has none."""
    tokens = particles.choices["token"]
    written = jnp.arange(tokens.shape[1]) < particles.lengths[:, None]
    terms = jnp.where(written, jnp.log(allowed)[tokens] + reward[tokens], 0.0)
    ended = jnp.any((tokens == eos) & written, axis=1)
    log_weights = jnp.where(ended, jnp.sum(terms, axis=1), -jnp.inf)
    ess = inference.effective_sample_size(log_weights)
    return eqx.tree_at(
        lambda p: (p.log_weights, p.log_evidence, p.ess),
        particles,
        (log_weights, log_mean_exp(log_weights), ess),
    )


def _runs(console, name, algorithm, target, seeds):
    """Runs with their own keys, and the seconds of those after the first, which compiles."""
    runs, times = [], []
    with progress(console) as shown:
        task = shown.add_task(f"{name}: compiling", total=seeds)
        for seed in range(seeds):
            start = time.perf_counter()
            runs.append(jax.block_until_ready(algorithm.run(jax.random.key(seed), target)))
            times.append(time.perf_counter() - start)
            shown.update(task, advance=1, description=f"{name}: running")
    return runs, float(np.median(times[1:] or times))


def _comparison(pooled, filtered, smc_time, baseline, drawn, plain_time) -> Table:
    """The steered posterior beside as many plain draws, which the constraint keeps or rejects."""
    table = Table(title="At the same number of particles and steps", title_justify="left")
    table.add_column("")
    table.add_column("SMC, guided", justify="right")
    table.add_column("plain draws, rejection", justify="right")
    sides = ((pooled, filtered, smc_time), (baseline, drawn, plain_time))
    rows = {
        "texts": [str(p.log_weights.shape[0]) for p, _, _ in sides],
        "that obey the constraint": [
            str(int(np.isfinite(np.asarray(p.log_weights)).sum())) for p, _, _ in sides
        ],
        "effective sample size": [f"{float(p.ess):.1f}" for p, _, _ in sides],
        "log evidence": [evidence_line(runs) for _, runs, _ in sides],
        "tokens written": [str(int(np.sum(p.lengths))) for p, _, _ in sides],
        "seconds a run": [f"{seconds:.1f}" for _, _, seconds in sides],
    }
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table
