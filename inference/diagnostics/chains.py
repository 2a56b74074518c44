"""Convergence of Markov chains: rank-normalized R-hat and effective sample sizes, by ArviZ.

Vehtari, Gelman, Simpson, Carpenter and Burkner (2021), "Rank-normalization, folding, and
localization: an improved R-hat".
"""

from typing import Any

import numpy as np

from .psis import import_arviz


def rhat(draws: Any) -> Any:
    """Rank-normalized split R-hat of every scalar: a tree like `draws` without the first two axes.

    `draws` is an array or a nested dict of choices with leading axes [chains, draws]. Above 1.01
    the chains have not mixed. NaN for what never changes.
    """
    return _each(draws, "rhat", method="rank")


def ess(draws: Any) -> Any:
    """Bulk effective sample size of every scalar; see `rhat`."""
    return _each(draws, "ess", method="bulk")


def ess_tail(draws: Any) -> Any:
    """Tail effective sample size (the smaller of the 5% and 95% quantiles'); see `rhat`."""
    return _each(draws, "ess", method="tail")


def mcse(draws: Any) -> Any:
    """Monte Carlo standard error of the mean of every scalar; see `rhat`."""
    return _each(draws, "mcse", method="mean")


def _each(draws: Any, name: str, **options: Any) -> Any:
    if isinstance(draws, dict):
        return {site: _each(node, name, **options) for site, node in draws.items()}
    values = np.asarray(draws)
    if values.ndim < 2 or values.shape[1] < 4:
        raise ValueError(
            f"{name} needs draws with leading axes [chains, draws], at least four draws, got shape "
            f"{values.shape}; for one chain add an axis, draws[None]"
        )
    function = getattr(import_arviz(name), name)
    flat = np.moveaxis(values.reshape(*values.shape[:2], -1).astype(float), -1, 0)
    with np.errstate(all="ignore"):
        result = [np.nan if _constant(x) else float(function(x, **options)) for x in flat]
    return np.reshape(result, values.shape[2:])


def _constant(x: np.ndarray) -> bool:
    return bool((x == x.flat[0]).all())
