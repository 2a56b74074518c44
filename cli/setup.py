"""What every command does first."""

import time
from pathlib import Path

import jax
from rich.console import Console

from .. import models
from ..models.language.fetch import cache_folder


def cache_compilations() -> None:
    """Keep compiled programs between processes, unless the user has set a folder of their own."""
    folder = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if folder is None:
        jax.config.update("jax_compilation_cache_dir", str(Path(cache_folder()) / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def loaded(console: Console, name: str) -> models.LanguageModel:
    """The language model, fetched on first use, with its time."""
    start = time.perf_counter()
    with console.status(f"Loading {name} (the first time it is fetched: 93 MB)"):
        lm = models.load(name)
    console.print(
        f"Loaded {name}: {lm.vocab_size} tokens, {time.perf_counter() - start:.1f} s",
        highlight=False,
    )
    return lm


def ask(lm: models.LanguageModel, prompt: str, raw: bool) -> models.Prefix:
    """The prompt read by the model, as a chat message unless `raw`."""
    return lm.prompt(prompt if raw else [{"role": "user", "content": prompt}])
