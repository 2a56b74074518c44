"""`python -m feynkac sample "prompt"`: posterior texts for a prompt, constraint and reward."""

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from rich.console import Console

from .. import inference, models, ppl
from .setup import ask, cache_compilations, loaded
from .show import picture, progress, report

RESAMPLERS = {
    cls.__name__.lower(): cls
    for cls in (
        inference.Systematic,
        inference.Stratified,
        inference.Multinomial,
        inference.Residual,
        inference.SSP,
        inference.Killing,
    )
}


def add_to(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "sample", help="posterior texts for your own prompt, constraint and reward"
    )
    parser.add_argument("prompt")
    parser.add_argument(
        "--model",
        default="smollm2-135m-instruct",
        help="a known name, a .gguf file or a safetensors folder",
    )
    parser.add_argument(
        "--raw", action="store_true", help="continue the prompt as it is, without the chat template"
    )
    parser.add_argument("--particles", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument(
        "--without", default="", metavar="LETTERS", help="letters that no token may contain"
    )
    parser.add_argument(
        "--only",
        default="",
        metavar="LETTERS",
        help="characters, besides the space, that tokens may contain",
    )
    parser.add_argument(
        "--favor",
        action="append",
        default=[],
        metavar="WORD=NATS",
        help="reward for tokens that begin with WORD (default 1 nat; may be negative); repeatable",
    )
    parser.add_argument("--regex", help="a regular expression that the whole text matches")
    parser.add_argument(
        "--schema", metavar="FILE", help="a file with the JSON schema that the text obeys"
    )
    parser.add_argument(
        "--must-end",
        action="store_true",
        help="texts unfinished at --max-tokens get weight zero",
    )
    parser.add_argument("--resampler", choices=sorted(RESAMPLERS), default="systematic")
    parser.add_argument(
        "--ess-threshold",
        type=float,
        default=0.5,
        help="resample below this fraction of the particles",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        help="independent runs, pooled; with several the evidence has an error",
    )
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--show", type=int, default=8, help="how many texts to print")
    parser.add_argument(
        "--picture", help="write genealogy, effective sample size and evidence here"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON instead")
    parser.set_defaults(run=run)


def favors(options: list[str]) -> dict[str, float]:
    """The rewards of --favor by word; ValueError if one is not WORD or WORD=NATS."""
    table = {}
    for option in options:
        word, _, nats = option.partition("=")
        try:
            table[word.lower()] = float(nats) if nats else 1.0
        except ValueError:
            raise ValueError(f"--favor takes WORD or WORD=NATS, not {option!r}") from None
        if not word:
            raise ValueError(f"--favor takes WORD or WORD=NATS, not {option!r}")
    return table


def run(args: argparse.Namespace) -> int:
    """The command; returns the exit status."""
    console = Console(stderr=args.json)
    try:
        rewards = favors(args.favor)
        checks = {
            "--particles": args.particles >= 1,
            "--max-tokens": args.max_tokens >= 1,
            "--temperature": args.temperature > 0,
            "--seeds": args.seeds >= 1,
            "--ess-threshold": 0 <= args.ess_threshold <= 1,
        }
        for option, good in checks.items():
            if not good:
                raise ValueError(
                    f"{option} is out of range: particles, tokens, seeds at least 1; temperature "
                    "above 0; threshold 0 to 1"
                )
        cache_compilations()
        lm = loaded(console, args.model)

        def allowed(text: str) -> float:
            letters = text.lower()
            kept = not args.only or all(c in args.only.lower() or c == " " for c in letters)
            return float(kept and not any(c in letters for c in args.without.lower()))

        def reward(text: str) -> float:
            word = text.strip().lower()
            return max(
                (nats for w, nats in rewards.items() if word.startswith(w)), key=abs, default=0.0
            )

        table = models.token_table(lm, allowed)
        if not (table > 0).any():
            raise ValueError("--only and --without together forbid every token")
        prompt = ask(lm, args.prompt, args.raw)
        whole = args.must_end or args.regex is not None or args.schema is not None
        at_length = ppl.Reject() if whole else ppl.Keep()
        story = models.generation(lm, prompt, args.max_tokens, args.temperature, at_length)
        story = story * models.TokenReward(jnp.log(table) + models.token_table(lm, reward))
        if args.regex is not None:
            story = story * models.Regex(args.regex)
        if args.schema is not None:
            story = story * models.JsonSchema(json.loads(Path(args.schema).read_text()))
    except (ValueError, OSError) as error:
        console.print(f"[red]{error}[/red]", highlight=False)
        return 2
    resampler = RESAMPLERS[args.resampler](ess_threshold=args.ess_threshold)
    smc = inference.SMC(args.particles, resampler)
    runs, start = [], time.perf_counter()
    with progress(console) as shown:
        task = shown.add_task("compiling", total=args.seeds)
        for seed in range(args.seed, args.seed + args.seeds):
            runs.append(jax.block_until_ready(smc.run(jax.random.key(seed), story)))
            shown.update(task, advance=1, description="running")
    pooled = inference.pool(*runs)
    if args.json:
        print(json.dumps(_as_json(lm, runs, pooled)))
    else:
        report(console, lm, runs, pooled, args.show)
        console.print(f"{time.perf_counter() - start:.1f} s, compilation included", highlight=False)
    if args.picture:
        picture(lm, runs[0], args.picture)
    return 0 if pooled.status else 1


def _as_json(
    lm: models.LanguageModel, runs: list[inference.Particles], pooled: inference.Particles
) -> dict:
    return {
        "texts": [reading._asdict() for reading in models.texts(lm, pooled)],
        "log_evidence": float(pooled.log_evidence),
        "log_evidence_by_seed": [float(p.log_evidence) for p in runs],
        "ess": float(pooled.ess),
        "ess_history": [[float(e) for e in p.ess_history] for p in runs],
        "status": pooled.status.message,
    }
