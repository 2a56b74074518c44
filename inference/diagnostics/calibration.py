"""Simulation-based calibration: does an algorithm sample the posteriors of a program?

Talts, Betancourt, Simpson, Vehtari and Gelman (2018), "Validating Bayesian inference algorithms
with simulation-based calibration", algorithm 1; the log density as test quantity: Modrak, Moon,
Kim, Burkner, Huurre, Faltejskova, Gelman and Vehtari (2023), which sees an algorithm that ignores
the data; expected coverage of highest-density regions: Hermans et al. (2022), section 2.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaincc
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ...ppl.code import Code
from ...ppl.compiled import compiled
from ...ppl.errors import ProgramError
from ...ppl.generative import Request
from ...ppl.partial import Choices
from ...ppl.program import as_program
from ...ppl.target import Target
from ..particles import Particles
from ..resampling import Systematic

LOG_DENSITY = "log density"
_PURE = Request(weightless=True)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Ranks of the truth among posterior draws, by test quantity; uniform if all is exact.

    - `ranks[name]` [runs], from 0 to `draws`: how many draws lie below the truth (ties are broken
      at random, so that discrete quantities have uniform ranks too). Under "log density" it is how
      many are less probable.
    - `failed`: runs without a usable posterior (dead or NaN); they are in no rank.
    """

    ranks: Mapping[str, Int[np.ndarray, "runs"]]
    draws: int
    failed: int

    def p_values(self, bins: int = 20) -> dict[str, float]:
        """P-value of uniformity for each quantity: chi-squared over about equal bins of ranks."""
        return {name: _chi_squared(ranks, self.draws, bins) for name, ranks in self.ranks.items()}

    @property
    def p_value(self) -> float:
        """The smallest p-value, times their number (Bonferroni); 0 if a run failed."""
        values = self.p_values()
        return 0.0 if self.failed else min(1.0, min(values.values()) * len(values))

    def check(self, level: float = 1e-3) -> "Calibration":
        """Itself, or `AssertionError` with the worst quantities if p_value < level."""
        if self.p_value < level:
            raise AssertionError(self.report())
        return self

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
            it should be); or any function (key, target) -> choices with a leading axis of draws,
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
    model = as_program(program)
    if not isinstance(algorithm, eqx.Module):
        algorithm = Code(algorithm)
    parts, failed = [], []
    for start in range(0, runs, batch):
        keys = jax.random.split(jax.random.fold_in(key, start), min(batch, runs))
        f = None if functions is None else Code(functions)
        one = _Simulation(model, algorithm, tuple(observed), args, draws, f)
        ranks, ok = _vmapped(one, keys)
        count = min(batch, runs - start)
        parts.append(jax.tree.map(lambda x, n=count: np.asarray(x)[:n], ranks))
        failed.append(~np.asarray(ok)[:count])
    bad = np.concatenate(failed)
    ranks = jax.tree.map(lambda *xs: np.concatenate(xs)[~bad], *parts)
    number = int(np.asarray(ranks.pop("draws")).max(initial=0))
    named = {}
    for name, values in _named(ranks["functions"]):
        flat = values.reshape(len(values), -1)
        named.update(
            {
                name if flat.shape[1] == 1 else f"{name}[{i}]": column
                for i, column in enumerate(flat.T)
            }
        )
    return Calibration({**named, LOG_DENSITY: ranks["density"]}, number, int(bad.sum()))


class _Simulation(eqx.Module):
    program: Any
    algorithm: Any
    observed: tuple[str, ...] = eqx.field(static=True)
    args: tuple
    draws: int = eqx.field(static=True)
    functions: Code | None

    def __call__(self, key):
        key_truth, key_run, key_pick, key_ties = jax.random.split(key, 4)
        truth = self.program.run(key_truth, {}, self.args, _PURE).choices
        missing = [name for name in self.observed if name not in truth]
        if missing or len(self.observed) == len(truth) or not self.observed:
            raise ProgramError(
                f"observed={list(self.observed)} must name some, not all, of the program's sites "
                f"{sorted(truth)}"
            )
        data = {name: truth[name] for name in self.observed}
        target = Target(self.program, self.args, data)
        if hasattr(self.algorithm, "run"):
            particles: Particles = self.algorithm.run(key_run, target)
            ok = jnp.isfinite(particles.log_evidence)
            # More draws than particles: the weights are repeated, which keeps them proper.
            times = -(-self.draws // particles.log_weights.shape[0])
            log_w = jnp.tile(particles.log_weights, times)
            key_pick, key_order = jax.random.split(key_pick)
            index = Systematic().ancestors(key_pick, log_w) % particles.log_weights.shape[0]
            index = jax.random.permutation(key_order, index)[: self.draws]
            posterior = jax.tree.map(lambda x: x[index], particles.choices)
        else:
            posterior, ok = self.algorithm(key_run, target), jnp.ones((), bool)
        free = {n: x for n, x in posterior.items() if n not in self.observed}
        both = jax.tree.map(
            lambda x, xs: jnp.concatenate([x[None], xs.astype(x.dtype)]), _free(truth, data), free
        )
        log_density = jax.vmap(target.log_density)(both)
        values, f = both, self.functions
        if f is not None:
            values = jax.vmap(lambda c: f({**c, **data}))(both)
        key_density, key_values = jax.random.split(key_ties)
        leaves, structure = jax.tree.flatten(values)
        keys = jax.random.split(key_values, max(len(leaves), 1))
        ranked = [_rank(k, x) for k, x in zip(keys, leaves, strict=False)]
        number = jnp.int32(log_density.shape[0] - 1)
        return {
            "functions": jax.tree.unflatten(structure, ranked),
            "density": _rank(key_density, log_density),
            "draws": number,
        }, ok


@compiled
def _vmapped(one, keys):
    return jax.vmap(one)(keys)


def _free(truth: Choices, data: Choices) -> Choices:
    return {name: node for name, node in truth.items() if name not in data}


def _rank(key: PRNGKeyArray, values: Array) -> Int[Array, "..."]:
    """Rank of row 0 among the others, ties broken at random."""
    truth, draws = values[:1], values[1:]
    below = jnp.sum(draws < truth, axis=0)
    ties = jnp.sum(draws == truth, axis=0)
    return (below + jax.random.randint(key, ties.shape, 0, ties + 1)).astype(jnp.int32)


def _named(tree: Any, prefix: str = ""):
    if isinstance(tree, dict):
        for name, node in tree.items():
            yield from _named(node, f"{prefix}{name}/")
    else:
        for i, leaf in enumerate(jax.tree.leaves(tree)):
            whole = len(jax.tree.leaves(tree)) == 1
            yield (prefix[:-1] or "f") if whole else f"{prefix}{i}", leaf


def _chi_squared(ranks: np.ndarray, draws: int, bins: int) -> float:
    """Of the counts of ranks in bins that are as equal as whole ranks allow."""
    n = len(ranks)
    bins = int(max(2, min(bins, draws + 1, n // 10)))
    edges = np.round(np.linspace(0, draws + 1, bins + 1))
    expected = n * np.diff(edges) / (draws + 1)
    counts = np.histogram(ranks, edges - 0.5)[0]
    statistic = float(np.sum((counts - expected) ** 2 / expected))
    return float(gammaincc((bins - 1) / 2, statistic / 2))
