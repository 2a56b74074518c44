"""`python -m feynkac gallery`: eight programs on a real language model, each checked."""

import argparse
import inspect
import textwrap
import time

import jax
import numpy as np
from rich.console import Console
from rich.panel import Panel
from rich.syntax import Syntax

from .. import inference, models
from .examples import EXAMPLES, SPEAKERS, algorithm
from .setup import cache_compilations, loaded
from .show import progress, report


def add_to(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "gallery", help="eight programs on SmolLM2: schema, haiku, infilling, personas, ..."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(EXAMPLES)}")
    parser.add_argument("--particles", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=2, help="independent runs (default 2)")
    parser.add_argument("--show", type=int, default=5, help="how many texts to print (default 5)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """The command; 0 if every text of positive weight obeys its rule and no run died."""
    console = Console()
    unknown = sorted(set(args.names) - set(EXAMPLES))
    if unknown or args.particles < 1 or args.seeds < 1:
        console.print(
            f"no such program: {', '.join(unknown)}; there are {', '.join(EXAMPLES)}"
            if unknown
            else "--particles and --seeds are at least 1"
        )
        return 2
    cache_compilations()
    lm = loaded(console, "smollm2-135m-instruct")
    return max(_show(console, lm, name, args) for name in args.names or EXAMPLES)


def _show(console: Console, lm: models.LanguageModel, name: str, args) -> int:
    make = EXAMPLES[name]
    source = textwrap.dedent(inspect.getsource(make))
    console.print(Panel(Syntax(source, "python", theme="ansi_dark", word_wrap=True), title=name))
    try:
        example = make(lm)
    except ImportError as error:
        console.print(f"[yellow]left out:[/yellow] {error}; pip install rdkit")
        return 0
    smc, runs = algorithm(example, args.particles), []
    started = time.perf_counter()
    with progress(console) as shown:
        task = shown.add_task(f"{name}: compiling", total=args.seeds)
        for seed in range(args.seeds):
            runs.append(jax.block_until_ready(smc.run(jax.random.key(seed), example.story)))
            shown.update(task, advance=1, description=f"{name}: running")
    pooled = inference.pool(*runs)
    report(console, lm, runs, pooled, args.show)
    readings = models.texts(lm, pooled)
    wrong = [r.text for r in readings if not example.obeys(r.text)]
    obeying = sum(r.particles for r in readings) - sum(
        r.particles for r in readings if r.text in wrong
    )
    console.print(
        f"obey the rule           {obeying} of {sum(r.particles for r in readings)} particles of "
        f"positive weight ({time.perf_counter() - started:.0f} s with compilation)"
    )
    if name == "persona":
        shares = np.bincount(
            np.asarray(pooled.choices["persona"]), np.asarray(pooled.weights), len(SPEAKERS)
        )
        said = ", ".join(f"{who} {share:.2f}" for who, share in zip(SPEAKERS, shares, strict=True))
        console.print(f"posterior of the speaker: {said}")
    console.print()
    return int(bool(wrong) or not readings)
