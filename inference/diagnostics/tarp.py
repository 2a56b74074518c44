"""Tests of accuracy with random points: coverage of balls about reference points.

Lemos, Coogan, Hezaveh and Perreault-Levasseur (2023), "Sampling-based accuracy testing of posterior
estimators for general inference", algorithm 2. Its theorem needs references that vary with the
data: against references drawn apart from the data an estimator that returns the prior has the right
coverage. Here they are told from the data by a regression that is fitted to draws from the program.
The test is of the fractions f themselves. (A test between the curves that f makes at a grid of
levels, as `sbi` has it, takes the grid's points for independent draws and passes a posterior that
is 30% too narrow.)
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ...ppl.code import Code
from ...ppl.compiled import compiled
from ...ppl.partial import Choices
from ...ppl.program import as_program
from .simulation import Simulated, flat, prior_draw, rank, simulate
from .uniformity import RankCheck, gamma_test

MOST = 4
"""So many directions in which default references stand off from the centre."""


@dataclasses.dataclass(frozen=True)
class Tarp(RankCheck):
    """Fractions of draws that are nearer to a reference than the truth is; uniform if all is exact.

    - `ranks[name]` [runs], from 0 to `draws`: how many draws are nearer; f = rank / draws.
    - `explained`: the share of the prior's variance that the references tell from the data, of the
      latent for which it is largest. Near 0 they hardly depend on the data, and then this check
      could not tell the posterior from the prior. NaN for references of the user's.
    - `failed`: runs without a usable posterior.
    """

    explained: float

    def p_values(self) -> dict[str, float]:
        """P-value of uniform fractions for each reference function, by `gamma_test`."""
        return {name: gamma_test(ranks, self.draws) for name, ranks in self.ranks.items()}

    def coverage(
        self, levels: Float[np.ndarray, "n"] | Sequence[float], name: str | None = None
    ) -> Float[np.ndarray, "n"]:
        """Expected coverage of the balls of posterior mass `level` about the references.

        By default about the first of them, the centre: above the level posteriors are too wide.
        """
        ranks = self.ranks[next(iter(self.ranks)) if name is None else name]
        u = (ranks + 0.5) / (self.draws + 1)
        return np.array([(u <= level).mean() for level in np.asarray(levels, float)])

    def report(self) -> str:
        """P-values, smallest first, and what they say."""
        values = self.p_values()
        lines = [f"coverage about {len(values)} references (TARP), {self.failed} failed runs"]
        for name in sorted(values, key=values.__getitem__):
            mean = float((self.ranks[name] / self.draws).mean()) if len(self.ranks[name]) else 0.5
            lines.append(
                f"  p = {values[name]:.2g}  {name}: mean fraction {mean:.3f} (1/2 is right)"
            )
        if self.explained < 0.05:
            lines.append(
                f"  the references tell only {self.explained:.1%} of the variance from the data: "
                "this check would not notice the prior in place of the posterior. Give "
                "reference=(key, data) -> latents that depends on the data"
            )
        return "\n".join(lines)

    def plot(self, axes: Any = None) -> Any:
        """Expected coverage by reference with its 99% band; a matplotlib figure."""
        from .panels import plot_coverage

        return plot_coverage({n: self.coverage(LEVELS, n) for n in self.ranks}, self._runs, axes)

    @property
    def _runs(self) -> int:
        return len(next(iter(self.ranks.values())))


LEVELS = np.linspace(0, 1, 101)


def tarp(
    key: PRNGKeyArray,
    program: Any,
    algorithm: Any,
    observed: Sequence[str],
    runs: int = 1000,
    *,
    args: tuple = (),
    draws: int = 99,
    reference: Callable[[PRNGKeyArray, Choices], Choices] | None = None,
    batch: int = 250,
) -> Tarp:
    """Coverage of an algorithm's posteriors about reference points that depend on the data.

    Distances are Euclidean, each latent number in units of the spread that the data leave it.

    Args:
        key: of everything, the draws that references are fitted to included.
        program: samples latents and data; see `sbc` for these, `algorithm`, `observed`, `draws`.
        algorithm: an `Algorithm`, a network, or a function (key, target) -> choices.
        observed: top-level site names that become data.
        runs: how many simulations.
        args: the program's.
        draws: posterior draws a simulation.
        reference: of the data, a point among the latents (a tree like the free choices), for a
            check of one's own. By default `References`: the regression's centre, which sees a wrong
            width and an estimator that ignores the data, and points beside it in fixed directions,
            which see shifts.
        batch: simulations at a time.
    """
    key_fit, key_runs = jax.random.split(key)
    statistic = distances(key_fit, program, tuple(observed), args, reference)
    taken, number, failed = simulate(
        key_runs,
        program,
        algorithm,
        tuple(observed),
        runs,
        {"tarp": statistic},
        args=args,
        draws=draws,
        batch=batch,
    )
    return Tarp(taken["tarp"], number, failed, statistic.explained)


class References(eqx.Module):
    """A regression of latents on data by ridge, and points two spreads beside it.

    Features are the standardized numbers of the data and their squares. `offsets` [count, latents]
    are added to the centre, in units of `spread`, the residual standard deviation.
    """

    data_mean: Float[Array, "data"]
    data_scale: Float[Array, "data"]
    weights: Float[Array, "features latents"]
    spread: Float[Array, "latents"]
    offsets: Float[Array, "count latents"]
    explained: Float[Array, ""]

    def __call__(self, data: Choices) -> Float[Array, "count latents"]:
        """The reference points for a data set."""
        centre = _features((flat(data) - self.data_mean) / self.data_scale) @ self.weights
        return centre[None] + self.offsets * self.spread[None]

    @property
    def names(self) -> list[str]:
        """Of each point; in alphabetical order, in which trees keep them."""
        count = self.offsets.shape[0] - 1
        return ["centre", *(f"direction {i}" for i in range(count))]


class Distances(eqx.Module):
    """The statistic of `tarp`: by reference, the rank of the truth's distance among the draws'."""

    references: References
    user: Code | None

    @property
    def explained(self) -> float:
        """See `Tarp`."""
        return float("nan") if self.user is not None else float(self.references.explained)

    def __call__(self, key: PRNGKeyArray, simulated: Simulated) -> PyTree:
        """Ranks by name of the reference."""
        key_reference, key_ties = jax.random.split(key)
        points = jax.vmap(flat)(simulated.both)
        if self.user is not None:
            centres = flat(self.user(key_reference, simulated.data))[None]
            names = ["reference"]
        else:
            centres, names = self.references(simulated.data), self.references.names
        scaled = (points[:, None] - centres[None]) / self.references.spread[None, None]
        ranks = rank(key_ties, jnp.sum(scaled**2, axis=-1))
        return {name: ranks[i] for i, name in enumerate(names)}


def distances(
    key: PRNGKeyArray,
    program: Any,
    observed: tuple[str, ...],
    args: tuple,
    reference: Callable[[PRNGKeyArray, Choices], Choices] | None = None,
) -> Distances:
    """The statistic, its regression fitted to draws from the program."""
    key_draws, key_directions = jax.random.split(key)
    latents, data = _pilot(as_program(program), observed, args, jax.random.split(key_draws, 1000))
    references = _fit(key_directions, latents, data)
    return Distances(references, None if reference is None else Code(reference))


@compiled
def _pilot(program, observed, args, keys):
    def one(key):
        latents, data = prior_draw(key, program, observed, args)
        return flat(latents), flat(data)

    return jax.vmap(one)(keys)


def _features(z: Float[Array, "*n data"]) -> Float[Array, "*n features"]:
    z = jnp.clip(jnp.nan_to_num(z), -10.0, 10.0)
    return jnp.concatenate([jnp.ones_like(z[..., :1]), z, z**2 - 1], axis=-1)


@jax.jit
def _fit(key, latents: Float[Array, "n latents"], data: Float[Array, "n data"]) -> References:
    n, d = latents.shape
    mean, scale = jnp.mean(data, axis=0), jnp.std(data, axis=0)
    scale = jnp.where(scale > 0, scale, 1.0)
    x = _features((data - mean[None]) / scale[None])
    fitted, held = x[: n // 2], x[n // 2 :]
    gram = fitted.T @ fitted + jnp.eye(x.shape[1])
    weights = jnp.linalg.solve(gram, fitted.T @ latents[: n // 2])
    residual = jnp.std(latents[n // 2 :] - held @ weights, axis=0)
    prior = jnp.std(latents[n // 2 :], axis=0)
    explained = 1 - (residual / jnp.where(prior > 0, prior, 1.0)) ** 2
    spread = jnp.where(prior > 0, jnp.minimum(residual, prior), 1.0)
    # A regression that does not generalize would put references anywhere: then the prior mean.
    weights = jnp.where((explained > 0)[None], weights, 0.0)
    weights = weights.at[0].set(jnp.where(explained > 0, weights[0], jnp.mean(latents, axis=0)))
    directions = jax.random.orthogonal(key, d)[:MOST]
    offsets = jnp.concatenate([jnp.zeros((1, d)), 2 * jnp.sqrt(d * 1.0) * directions])
    return References(mean, scale, weights, spread, offsets, jnp.max(explained))
