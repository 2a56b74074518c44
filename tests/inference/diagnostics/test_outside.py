"""P-values of the prior's own data sets are uniform; foreign and broken data are found."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac.inference.diagnostics import Nearest, familiar

from .conjugate import pair

KEY = jax.random.key(3)


class Log(eqx.Module):
    """A summary."""

    def __call__(self, data):
        return {"size": jnp.sqrt(jnp.sum(data["y"] ** 2)), "y": data["y"]}


@pytest.mark.parametrize(("distance", "summary"), [(None, None), (Nearest(5), Log())])
def test_own_and_foreign(distance, summary):
    known = familiar(KEY, pair, ["y"], distance=distance, summary=summary)
    scale = np.sqrt(1.25)
    own = scale * jax.random.normal(jax.random.key(4), (2000, 2))
    p = np.asarray(eqx.filter_jit(jax.vmap(lambda y: known({"y": y})))(own))
    # Conformal over one calibration set of 1000: the deviation of its own quantile comes on top.
    for level in (0.01, 0.1, 0.5):
        error = np.sqrt(level * (1 - level) * (1 / 2000 + 1 / 1000))
        assert abs((p <= level).mean() - level) < 4 * error
    assert known.outside({"y": jnp.array([6.0, -6.0])})
    assert known({"y": jnp.array([jnp.nan, 0.0])}) == 0
    with pytest.raises(ValueError, match="the prior's had"):
        known({"y": jnp.zeros(5)})
