"""How strategies are found for sites, and how they see them."""

import difflib
from collections.abc import Mapping
from typing import Any

import equinox as eqx

from ...ppl.enumeration import at_path
from ...ppl.errors import ProgramError
from ...ppl.probe import Probe
from ...ppl.selection import Selection
from . import nested
from .records import Path
from .strategies import Enumerate, MeasureValued, Reparameterized, Score, Strategy, TopK
from .strategies.base import is_reparameterized, type_name


class Plan(eqx.Module):
    """The strategies: nested dicts from names to strategies, or pairs (Selection, strategy).

    A path of names is looked for from the objective's outermost level, then without the names of
    the calls and `many`s around it: what is written for an ELBO holds for a mean of many.
    """

    strategies: Any
    allow_biased: bool = eqx.field(static=True)

    def find(self, path: Path, outer: int) -> tuple[Strategy | None, Path | Selection | None]:
        """The strategy for a site, whose first `outer` names are those of calls; and its entry."""
        if self.strategies is None or isinstance(self.strategies, Strategy):
            return self.strategies, None
        if not isinstance(self.strategies, Mapping):
            for start in range(outer + 1):
                for selection, strategy in self.strategies:
                    if selection.mask(path[start:], ()) is True:
                        return strategy, selection
            return None, None
        for start in range(outer + 1):
            node: Any = self.strategies
            for depth, name in enumerate(path[start:]):
                node = node.get(name) if isinstance(node, Mapping) else None
                if isinstance(node, Strategy):
                    return node, path[start : start + depth + 1]
        return None, None

    def strategy(self, path: Path, outer: int, d: Any) -> Strategy:
        """The strategy for a site, valid for its distribution; an error names site and remedy."""
        given, entry = self.find(path, outer)
        name = "/".join(path)
        if given is None or (entry is None and given.refusal(d) is not None):
            if is_reparameterized(d):
                return Reparameterized()
            if given is None:
                raise ProgramError(
                    f"site {name!r} has no gradient strategy, and {type_name(d)} cannot be "
                    f"reparameterized: give it one of {remedies(d)}, as "
                    f"strategies={_spelled(path[outer:])}"
                )
        reason = given.refusal(d)
        if reason is not None:
            raise ProgramError(
                f"site {name!r} cannot have the strategy {type(given).__name__}: {reason}. Give "
                f"it one of {remedies(d)}"
            )
        if given.biased and not self.allow_biased:
            raise ProgramError(
                f"the strategy {type(given).__name__} of site {name!r} gives biased gradients: "
                f"pass allow_biased=True to accept that, or give it one of {remedies(d)}"
            )
        return given

    def check_used(self, sites: list[tuple[Path, int]]) -> None:
        """Raise if some strategy is for no site."""
        used = [self.find(path, outer)[1] for path, outer in sites]
        known = sorted({"/".join(path[outer:]) for path, outer in sites})
        for entry in self._entries():
            if not any(entry is u or entry == u for u in used):
                what = entry.addresses() if isinstance(entry, Selection) else [entry]
                names = ", ".join(repr("/".join(a)) for a in what)
                near = difflib.get_close_matches("/".join(what[0]), known, n=1) if what else []
                hint = f"did you mean {near[0]!r}?" if near else f"the sites drawn are {known}"
                raise ProgramError(f"a strategy is given for {names}, which is no site: {hint}")

    def _entries(self) -> list:
        if self.strategies is None or isinstance(self.strategies, Strategy):
            return []
        if not isinstance(self.strategies, Mapping):
            return [selection for selection, _ in self.strategies]
        found: list = []

        def go(node, path):
            if isinstance(node, Mapping):
                for name, child in node.items():
                    go(child, (*path, name))
            elif isinstance(node, Strategy):
                found.append(path)
            else:
                raise ProgramError(
                    f"the strategy at {'/'.join(path)!r} is a {type(node).__name__}: give an "
                    "object such as vi.Score() or vi.Enumerate()"
                )

        go(self.strategies, ())
        return found


def remedies(d: Any) -> str:
    """The unbiased strategies that a distribution supports."""
    options = {
        "vi.Reparameterized()": Reparameterized(),
        "vi.Enumerate()": Enumerate(),
        "vi.TopK(k)": TopK(1),
        "vi.MeasureValued()": MeasureValued(),
        "vi.Score()": Score(),
    }
    return ", ".join(name for name, s in options.items() if s.refusal(d) is None)


def _spelled(path: Path) -> str:
    out = "vi.Score()"
    for name in reversed(path):
        out = f"{{{name!r}: {out}}}"
    return out


class StrategyProbe(Probe):
    """Lets each site's strategy see it, in the draws of an objective.

    `chosen` collects the strategies by address, checked once: runs again take them from there.
    """

    plan: Plan
    prefix: Path
    record: bool
    chosen: dict[Path, Strategy]

    def value(self, path, key, d, value):
        """See `Probe.value`."""
        address = (*self.prefix, *path)
        if address not in self.chosen:
            self.chosen[address] = self.plan.strategy(address, len(self.prefix), d)
        return self.chosen[address].value(key, d, value)

    def report(self, path, key, d, value, log_prob):
        """See `Probe.report`; None where nothing is to be recorded."""
        strategy = self.chosen[(*self.prefix, *path)]
        return strategy.report(key, d, value, log_prob) if self.record else None

    def estimated(self, path, d):
        """Draws inside have to carry their gradients; no strategy applies."""
        if not self.record:
            return
        address = (*self.prefix, *path)
        name = "/".join(address)
        if self.plan.find(address, len(self.prefix))[1] is not None:
            raise ProgramError(
                f"site {name!r} has an estimated density, whose draws are reparameterized: leave "
                "it out of the strategies, or draw it by ctx.draw(name, ppl.marginal(program, "
                "selection, inference.Importance(n))), where the program's sites can have them"
            )
        nested.check_differentiable(name, d)


class FixedProbe(StrategyProbe):
    """The same where some sites are fixed: they keep their values' gradients and report nothing."""

    fixed: Any

    def value(self, path, key, d, value):
        """See `Probe.value`."""
        return value if self._is_fixed(path) else super().value(path, key, d, value)

    def report(self, path, key, d, value, log_prob):
        """See `Probe.report`."""
        return None if self._is_fixed(path) else super().report(path, key, d, value, log_prob)

    def _is_fixed(self, path):
        return at_path(self.fixed, path[1:]) is not None


class EstimatesProbe(Probe):
    """Only looks after densities that are estimated: their draws have to carry gradients."""

    prefix: Path

    def report(self, path, key, d, value, log_prob):
        """None."""
        return None

    def estimated(self, path, d):
        """See `Probe.estimated`."""
        nested.check_differentiable("/".join((*self.prefix, *path)), d)
