"""The wheel, the editable install and a clone under another name all give the package `feynkac`."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = CONFIG["tool"]["setuptools"]["packages"]
APART = ["tests", "notebooks", "benchmarks"]  # of the repository, not of the package
INNER = sorted({package.split(".")[1] for package in PACKAGES if "." in package})
OFFLINE = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index"]


def folder_of(package: str) -> Path:
    return Path(*package.split(".")[1:])


def files() -> list[Path]:
    """Files of the checkout, relative to its root, without environments and build products."""
    found = []
    for folder, subfolders, names in os.walk(ROOT):
        built = ("build", "dist", "__pycache__")
        subfolders[:] = [
            name
            for name in subfolders
            if not name.startswith(".")
            and name not in built
            and not name.endswith(".egg-info")
            and not Path(folder, name, "pyvenv.cfg").exists()
        ]
        found += [Path(folder, name).relative_to(ROOT) for name in names if name[0] != "."]
    return found


FILES = files()


def in_package(path: Path) -> bool:
    return path.parts[0] not in APART


def run(*command: object, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=os.environ | env,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """The sources in a folder of another name."""
    root = tmp_path_factory.mktemp("clone") / "other-name"
    for path in FILES:
        copy = root / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((ROOT / path).read_bytes())
    return root


@pytest.fixture(scope="module")
def wheel(clone, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", *OFFLINE, "--wheel-dir", folder, clone, cwd=folder)
    return next(folder.glob("feynkac-*.whl"))


def test_package_list_is_complete():
    folders = {path.parent for path in FILES if path.name == "__init__.py" and in_package(path)}
    assert {folder_of(package) for package in PACKAGES} == folders
    assert len(set(PACKAGES)) == len(PACKAGES)


def test_every_module_is_in_a_package():
    folders = {folder_of(package) for package in PACKAGES}
    strays = [p for p in FILES if p.suffix == ".py" and in_package(p) and p.parent not in folders]
    assert not strays, f"instead of a bare folder, add __init__.py and list the package: {strays}"


def test_folders_outside_the_package_have_no_init():
    """An `__init__.py` there would join the package through the one at the root."""
    assert not [p for p in FILES if p.name == "__init__.py" and not in_package(p)]


def test_wheel_holds_the_package_and_nothing_else(wheel):
    modules = {p for p in FILES if p.suffix == ".py" and in_package(p)}
    data = {p for p in FILES if p.suffix != ".py" and p.parts[0] in INNER}
    held = {Path(name) for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == {"feynkac" / path for path in modules | data | {Path("py.typed")}}


EXTRAS = ["outlines_core", "llguidance", "arviz", "nbclient", "nbformat", "ipykernel", "beartype"]
IMPORT = f"""
import importlib, importlib.util, pkgutil, sys
sys.modules.update(dict.fromkeys({EXTRAS}))
for package in {PACKAGES}:  # without the extras: an import of one fails here
    importlib.import_module(package)
for name in {EXTRAS}:
    del sys.modules[name]
import feynkac
for module in pkgutil.walk_packages(feynkac.__path__, "feynkac."):
    if module.name.split(".")[1] in {INNER}:
        importlib.import_module(module.name)
for name in {INNER + APART}:
    assert name not in sys.modules, name
    assert importlib.util.find_spec(name) is None, name
print(feynkac.__path__[0])
"""


def test_wheel_installs_and_imports_elsewhere(wheel, tmp_path):
    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", *OFFLINE, "--target", site, wheel, cwd=tmp_path)
    found = run(sys.executable, "-c", IMPORT, cwd=tmp_path, PYTHONPATH=str(site))
    assert Path(found) == site / "feynkac"


def test_editable_install_of_a_clone_under_another_name(clone, tmp_path):
    env = tmp_path / "env"
    run(sys.executable, "-m", "venv", "--without-pip", env, cwd=tmp_path)
    python = env / "bin" / "python"
    site = run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=tmp_path)
    # A folder named in a `.pth` file gives its packages, but its own `.pth` files are not read:
    # the dependencies of this environment come along, its editable feynkac does not.
    ours = run(sys.executable, "-c", "import jax; print(jax.__path__[0])", cwd=tmp_path)
    Path(site, "dependencies.pth").write_text(str(Path(ours).parent))
    pip = [sys.executable, "-m", "pip", "--python", python]
    run(*pip, "install", *OFFLINE, "--editable", clone, cwd=tmp_path)
    assert Path(run(python, "-c", IMPORT, cwd=tmp_path)) == clone


def test_inner_names_are_never_imported_at_the_top_level():
    import feynkac  # noqa: F401

    assert not [name for name in INNER if name in sys.modules]


def test_files_are_small():
    measured = [*INNER, "tests"]
    sizes = {
        p: len((ROOT / p).read_text().splitlines())
        for p in FILES
        if p.suffix == ".py" and p.parts[0] in measured and (ROOT / p).stat().st_size
    }
    assert {p: n for p, n in sizes.items() if n > 400} == {}
    assert median(sizes.values()) <= 150
