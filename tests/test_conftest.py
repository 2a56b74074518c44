"""The settings of conftest.py hold: each check fails when its setting is lost."""

import os
import sys
import warnings

import jax
import jax.numpy as jnp
import pytest

import feynkac
import feynkac.ppl


def test_mixed_dtypes_do_not_promote():
    with pytest.raises(jax.dtypes.TypePromotionError):
        jnp.arange(3) * jnp.ones(3)


def test_ranks_do_not_promote():
    with pytest.raises(ValueError, match="rank"):
        jnp.ones((2, 3)) * jnp.ones(3)


def test_warnings_are_errors():
    with pytest.raises(UserWarning):
        warnings.warn("a warning of ours", stacklevel=1)


def test_modules_are_imported_through_the_jaxtyping_hook():
    loaded = [m for name, m in sys.modules.items() if name.startswith("feynkac.")]
    assert feynkac.ppl in loaded
    for module in loaded:
        loader = type(module.__spec__.loader)  # pyright: ignore
        assert loader.__module__.startswith("jaxtyping"), f"{module.__name__}: {loader}"


def test_two_devices():
    assert jax.local_device_count("cpu") == 2


@pytest.mark.x64
def test_default_float_follows_the_lane():
    wide = os.environ.get("JAX_ENABLE_X64", "0") == "1"
    assert jnp.zeros(()).dtype == (jnp.float64 if wide else jnp.float32)
