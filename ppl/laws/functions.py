"""Functions of choices whose expectations the laws compare."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..enumeration import ExactPosterior, at_path, matches
from ..generative import given_masks
from ..partial import Choices, as_given, walk

JOINT = 4


class Features(eqx.Module):
    """Test functions as one vector-valued function of choices.

    By default the indicator of every value of every unconstrained site (inactive instances hold
    zeros), and a few cosines of random projections of all of them, which see errors in the joint
    law that the marginals do not have. `exact` holds the posterior expectations.
    """

    supports: tuple[Array, ...]
    sites: tuple[tuple[tuple[str, ...], int], ...] = eqx.field(static=True)
    projections: Float[Array, "joint indicators"] | None
    custom: tuple[Callable, ...] = eqx.field(static=True)
    names: tuple[str, ...] = eqx.field(static=True)

    def __call__(self, choices: Choices) -> Float[Array, " f"]:
        """The values of all functions."""
        if self.projections is None:
            values = [jax.tree.leaves(f(choices)) for f in self.custom]
            parts = [jnp.ravel(jnp.asarray(x)) for leaves in values for x in leaves]
            return jnp.concatenate([jnp.ones(1), *(x.astype(float) for x in parts)])
        hits = [
            jnp.ravel(matches(support, at_path(choices, path), axes))
            for support, (path, axes) in zip(self.supports, self.sites, strict=True)
        ]
        hits = jnp.concatenate([jnp.zeros(0, bool), *hits]).astype(float)
        return jnp.concatenate([jnp.ones(1), hits, jnp.cos(self.projections @ hits)])

    @property
    def indicators(self) -> int:
        """How many of the functions, after the first, which is 1, are indicators."""
        return 0 if self.projections is None else self.projections.shape[1]


def features(
    posterior: ExactPosterior, functions: Mapping[str, Callable] | None = None
) -> tuple[Features, np.ndarray]:
    """The default functions, or those given, and their posterior expectations."""
    if functions is not None:
        names = ["1"]
        for name, f in functions.items():
            shapes = jax.tree.leaves(jax.eval_shape(f, _one(posterior.choices)))
            size = sum(int(np.prod(s.shape)) for s in shapes)
            names += [name] if size == 1 else [f"{name}[{i}]" for i in range(size)]
        out = Features((), (), None, tuple(functions.values()), tuple(names))
    else:
        sites, supports, names = [], [], ["1"]

        def site(path, happened, support, given):
            if support is None or given is True:
                return
            axes = happened.ndim - 1
            sites.append((path, axes))
            supports.append(support)
            names.extend(_names("/".join(path), np.asarray(support), axes))

        constraints = as_given(posterior.target.constraints)
        given = given_masks(posterior.happened, constraints)
        walk(site, posterior.happened, posterior.supports, given)
        n = len(names) - 1
        projections = np.random.default_rng(0).normal(size=(JOINT, n))
        names += [f"joint {i}" for i in range(JOINT)]
        out = Features(
            tuple(supports), tuple(sites), jnp.asarray(projections, float), (), tuple(names)
        )
    return out, posterior.expectation(out)


def _names(site: str, support: np.ndarray, axes: int) -> list[str]:
    names = []
    for index in np.ndindex(*support.shape[:axes]):
        at = f"{site}[{','.join(map(str, index))}]" if index else site
        names += [f"{at}={value.tolist()}" for value in support[index]]
    return names


def _one(choices: Any) -> Any:
    return jax.tree.map(lambda x: x[0], choices)


def z_scores(
    f: Features, mean: np.ndarray, error: np.ndarray, exact: np.ndarray, runs: int
) -> tuple[dict[str, float], list[str]]:
    """Z of each function by name; those too rare for a normal approximation apart."""
    z, untested = {}, []
    for i, name in enumerate(f.names):
        if 1 <= i <= f.indicators and exact[i] == 0:
            z[f"impossible: {name}"] = 0.0 if mean[i] == 0 else float("inf")
        elif 1 <= i <= f.indicators and exact[i] * runs < RARE:
            untested.append(name)
        else:
            scale = max(abs(exact[i]), 1e-3)
            floor = 4 * float(jnp.finfo(jnp.float32).eps) * scale
            z[name] = float((mean[i] - exact[i]) / np.hypot(error[i], floor))
    return z, untested


RARE = 50
