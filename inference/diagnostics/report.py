"""One report on a way to posteriors: ranks, coverage, balls about references, weights."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ...ppl.code import Code
from ...ppl.partial import Choices
from .calibration import LOG_DENSITY, Calibration, Ranks, calibration
from .psis import psis
from .simulation import Simulated, simulate
from .tarp import Tarp, distances

_LEVELS = (0.5, 0.8, 0.95)


@dataclasses.dataclass(frozen=True)
class Report:
    """What `report` found, all of it from the same simulations.

    - `calibration`: simulation-based calibration and coverage of highest-density regions.
    - `tarp`: coverage about references that depend on the data.
    - `khats` [data sets]: of an algorithm's weights, None where there are none (or no ArviZ). They
      do not enter the p-value: a large k-hat says that weights are unreliable, not that draws are
      wrong.
    - `failed`: runs without a usable posterior.
    """

    calibration: Calibration
    tarp: Tarp
    khats: Float[np.ndarray, "n"] | None
    failed: int

    def p_values(self) -> dict[str, float]:
        """Of the checks, each corrected for the number of its quantities."""
        return {
            "ranks (SBC)": self.calibration.p_value,
            "balls (TARP)": self.tarp.p_value,
            "log density": self.calibration.p_values()[LOG_DENSITY],
        }

    @property
    def p_value(self) -> float:
        """Twice the smaller of SBC's and TARP's (Bonferroni); 0 if a run failed."""
        return min(1.0, 2 * min(self.calibration.p_value, self.tarp.p_value))

    @property
    def ok(self) -> bool:
        """Is p_value at least 0.01?"""
        return bool(self.p_value >= 0.01)

    def check(self, level: float = 1e-3) -> "Report":
        """Itself, or `AssertionError` with the whole text if p_value < level."""
        if self.p_value < level:
            raise AssertionError(self.text())
        return self

    def text(self) -> str:
        """All of it in words and numbers."""
        runs = len(self.calibration.ranks[LOG_DENSITY])
        if not runs:
            return f"NOT CALIBRATED: all {self.failed} runs failed"
        verdict = "no defect found" if self.ok else "NOT CALIBRATED"
        covered = self.calibration.coverage(_LEVELS)
        said = ", ".join(
            f"{b:.0%} regions hold {c:.1%}" for b, c in zip(_LEVELS, covered, strict=True)
        )
        lines = [
            f"{verdict}: p = {self.p_value:.2g} from {runs} simulations with "
            f"{self.calibration.draws} draws each",
            f"coverage of highest-density regions: {said}",
            self.calibration.report(),
            self.tarp.report(),
        ]
        if self.khats is not None:
            good = np.mean(self.khats <= 0.7)
            lines.append(
                f"weights of {len(self.khats)} data sets: median k-hat "
                f"{np.median(self.khats):.2f}, {good:.0%} reliable (at most 0.7)"
            )
        return "\n".join(lines)

    def plot(self, axes: Any = None) -> Any:
        """One picture of six panels; a matplotlib figure."""
        from .panels import plot_report

        return plot_report(self, axes)


def report(
    key: PRNGKeyArray,
    program: Any,
    algorithm: Any,
    observed: Sequence[str],
    runs: int = 1000,
    *,
    args: tuple = (),
    draws: int = 99,
    functions: Callable[[Choices], Any] | None = None,
    reference: Callable[[PRNGKeyArray, Choices], Choices] | None = None,
    batch: int = 250,
) -> Report:
    """Check any way to the posteriors of a program, by simulations shared among the checks.

    What passes at 500 simulations and 99 draws may still be off a little: by a tenth of a standard
    deviation, or 5% in width. It passes on the prior's data sets on average; for one data set ask
    `familiar`, and correct by weights.

    Args:
        key: of everything.
        program: samples latents and data; see `sbc`.
        algorithm: an `Algorithm` (importance sampling with a network as its proposal, say, whose
            weights are judged too); a network with `sample(key, data, draws)`, whose weights are
            judged if it has `log_prob(data, choices)`, like `models.amortized.npe`'s; or a function
            or `eqx.Module` (key, target) -> choices with a leading axis of draws. Arrays of a
            Module are not constants of the compiled check.
        observed: top-level site names that become data.
        runs: how many simulations.
        args: the program's.
        draws: posterior draws a simulation.
        functions: test quantities; see `sbc`.
        reference: see `tarp`.
        batch: simulations at a time.
    """
    key_fit, key_runs = jax.random.split(key)
    f = None if functions is None else Code(functions)
    balls = distances(key_fit, program, tuple(observed), args, reference)
    statistics = {"ranks": Ranks(f), "tarp": balls, "weights": _Weights()}
    taken, number, failed = simulate(
        key_runs,
        program,
        algorithm,
        tuple(observed),
        runs,
        statistics,
        args=args,
        draws=draws,
        batch=batch,
    )
    log_weights = taken["weights"]
    khats = None
    if log_weights.shape[1]:
        with contextlib.suppress(ImportError):  # without ArviZ the rest is still worth having
            khats = np.asarray(psis(log_weights[:200])[1])
    return Report(
        calibration(taken["ranks"], number, failed),
        Tarp(taken["tarp"], number, failed, balls.explained),
        khats,
        failed,
    )


class _Weights(eqx.Module):
    """The log-weights of an algorithm's population, of which there may be none."""

    def __call__(self, key: PRNGKeyArray, simulated: Simulated) -> Float[Array, "n"]:
        return jnp.zeros(0) if simulated.log_weights is None else simulated.log_weights
