"""Set-up of every test: strict JAX, runtime shape checks, one compilation cache for all workers."""

import os
from importlib.metadata import version
from pathlib import Path

CACHE = Path(__file__).resolve().parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(CACHE)
)  # processes that tests start share it
os.environ.setdefault("MPLBACKEND", "agg")
# Tests compile more than they compute: these save most of the compiler's time. A flag that XLA
# does not know ends the process, hence the version.
if version("jaxlib").startswith("0.10."):
    os.environ.setdefault(
        "XLA_FLAGS", "--xla_backend_optimization_level=1 --xla_cpu_use_fusion_emitters=false"
    )

import jax  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("feynkac", "beartype.beartype")

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

MAPS = Path("/proc/self/maps")


def pytest_collection_modifyitems(items):
    """The longest files first: at the end they would leave all workers but one idle."""
    items.sort(key=lambda item: item.path.name not in ("test_notebooks.py", "test_x64_lane.py"))


def pytest_runtest_teardown(item, nextitem):
    """Forget compiled programs when there are many: Linux allows a process 65,530 memory maps.

    A program takes several, and where no more are left XLA ends the process.
    """
    if nextitem is not None and nextitem.fspath == item.fspath or not MAPS.exists():
        return
    with MAPS.open() as file:
        if sum(1 for _ in file) > 20_000:
            jax.clear_caches()
