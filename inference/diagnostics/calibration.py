"""Simulation-based calibration: does an algorithm sample the posteriors of a program?

Talts, Betancourt, Simpson, Vehtari and Gelman (2018), "Validating Bayesian inference algorithms
with simulation-based calibration", algorithm 1; the log density as test quantity: Modrak, Moon,
Kim, Burkner, Huurre, Faltejskova, Gelman and Vehtari (2023), which sees an algorithm that ignores
the data; expected coverage of highest-density regions: Hermans et al. (2022), section 2.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray, PyTree

from ...ppl.code import Code
from ...ppl.partial import Choices
from .simulation import Simulated, rank, simulate
from .uniformity import RankCheck, chi_squared, gamma_test

LOG_DENSITY = "log density"


@dataclasses.dataclass(frozen=True)
class Calibration(RankCheck):
    """Ranks of the truth among posterior draws, by test quantity; uniform if all is exact.

    - `ranks[name]` [runs], from 0 to `draws`: how many draws lie below the truth (ties are broken
      at random, so that discrete quantities have uniform ranks too). Under "log density" it is how
      many are less probable.
    - `failed`: runs without a usable posterior (dead, or draws that are not finite); they are in
      no rank.
    """

    def p_values(self, bins: int = 20) -> dict[str, float]:
        """P-value of uniformity for each quantity: chi-squared over about equal bins of ranks."""
        return {name: chi_squared(ranks, self.draws, bins) for name, ranks in self.ranks.items()}

    def gamma(self) -> dict[str, float]:
        """P-values of the gamma test, which sees small shifts and tails that bins do not."""
        return {name: gamma_test(ranks, self.draws) for name, ranks in self.ranks.items()}

    def report(self, rows: int = 8) -> str:
        """P-values, smallest first, and how the ranks deviate."""
        values = self.p_values()
        names = sorted(values, key=values.__getitem__)[:rows]
        lines = [f"calibration of {len(values)} quantities, {self.failed} failed runs"]
        lines += [f"  p = {values[n]:.2g}  {n}: {self._shape(n)}" for n in names]
        return "\n".join(lines)

    def _shape(self, name: str) -> str:
        u = (self.ranks[name] + 0.5) / (self.draws + 1)
        mean, spread = u.mean() - 0.5, u.std() * math.sqrt(12)
        error = 1 / math.sqrt(12 * len(u))
        if abs(mean) > 4 * error:
            return "draws are too low" if mean > 0 else "draws are too high"
        if abs(spread - 1) > 4 * 0.65 / math.sqrt(len(u)):
            return "draws are too narrow" if spread > 1 else "draws are too wide"
        return "no shift and no change of width"

    def coverage(
        self, levels: Float[np.ndarray, "n"] | Sequence[float], name: str = LOG_DENSITY
    ) -> Float[np.ndarray, "n"]:
        """Expected coverage: how often the truth is in the region of posterior mass `level`.

        By log density these are highest-density regions, for another quantity central intervals.
        Above the level the posteriors are too wide, below it too narrow (overconfident).
        """
        u = (self.ranks[name] + 0.5) / (self.draws + 1)
        inside = 1 - u if name == LOG_DENSITY else np.abs(2 * u - 1)
        return np.array([(inside <= level).mean() for level in np.asarray(levels, float)])

    def plot(self, axes: Any = None) -> Any:
        """Rank histograms, differences of distribution functions, coverage; a matplotlib figure."""
        from .plots import plot_calibration

        return plot_calibration(self, axes)


def sbc(
    key: PRNGKeyArray,
    program: Any,
    algorithm: Any,
    observed: Sequence[str],
    runs: int = 1000,
    *,
    args: tuple = (),
    draws: int = 99,
    functions: Callable[[Choices], Any] | None = None,
    batch: int = 250,
) -> Calibration:
    """Draw truth and data from the program, the posterior by the algorithm; rank the truth.

    Args:
        key: of everything.
        program: samples latents and data alike; what it observes or weighs would not be part of
            the law simulated from, and is an error.
        algorithm: an `Algorithm`, from whose population `draws` are resampled by weight (so a
            population whose effective size is not well above `draws` is seen as miscalibrated, as
            it should be); a network with `sample(key, data, draws)`; or any function (key, target)
            -> choices with a leading axis of draws,
            whose number counts instead of `draws`. Thin a Markov chain: its draws should be near
            independent.
        observed: top-level site names that become data.
        runs: how many simulations; all in compiled batches of at most `batch`.
        args: the program's.
        draws: posterior draws a simulation; 99 or another 20 k - 1 has equal bins.
        functions: of all choices, to an array or tree of test quantities; by default every scalar
            of every latent. The log joint density is always added.
        batch: simulations at a time.

    Returns:
        The ranks with `p_values`, `coverage`, `report`, `check` and `plot`.
    """
    f = None if functions is None else Code(functions)
    taken, number, failed = simulate(
        key,
        program,
        algorithm,
        tuple(observed),
        runs,
        {"ranks": Ranks(f)},
        args=args,
        draws=draws,
        batch=batch,
    )
    return calibration(taken["ranks"], number, failed)


class Ranks(eqx.Module):
    """The statistic of `sbc`: ranks of the test quantities and of the log density."""

    functions: Code | None

    def __call__(self, key: PRNGKeyArray, simulated: Simulated) -> PyTree:
        """Of each scalar of each quantity, and of the log density."""
        key_density, key_values = jax.random.split(key)
        values, f = simulated.both, self.functions
        if f is not None:
            values = jax.vmap(lambda c: f({**c, **simulated.data}))(simulated.both)
        leaves, structure = jax.tree.flatten(values)
        keys = jax.random.split(key_values, max(len(leaves), 1))
        ranked = [rank(k, x) for k, x in zip(keys, leaves, strict=False)]
        return {
            "functions": jax.tree.unflatten(structure, ranked),
            "density": rank(key_density, simulated.log_density),
        }


def calibration(ranks: PyTree, draws: int, failed: int) -> Calibration:
    """The `Calibration` of what `Ranks` gave, with a name for each scalar."""
    named = {}
    for name, values in _named(ranks["functions"]):
        flat = values.reshape(len(values), math.prod(values.shape[1:]))
        named.update(
            {
                name if flat.shape[1] == 1 else f"{name}[{i}]": column
                for i, column in enumerate(flat.T)
            }
        )
    return Calibration({**named, LOG_DENSITY: ranks["density"]}, draws, failed)


def _named(tree: Any, prefix: str = ""):
    if isinstance(tree, dict):
        for name, node in tree.items():
            yield from _named(node, f"{prefix}{name}/")
    else:
        for i, leaf in enumerate(jax.tree.leaves(tree)):
            whole = len(jax.tree.leaves(tree)) == 1
            yield (prefix[:-1] or "f") if whole else f"{prefix}{i}", leaf
