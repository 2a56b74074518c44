"""Errors of guides and targets whose sites differ, and of sites without a strategy."""

from typing import Any

import jax

from ...ppl.errors import ProgramError
from ...ppl.partial import walk
from ...ppl.target import Target


def site_paths(tree: Any) -> set[str]:
    """The addresses of the leaves of nested dicts."""
    paths: list[str] = []
    walk(lambda path, _: paths.append("/".join(path)), tree)
    return set(paths)


def free_sites(target: Target) -> set[str]:
    """The sites of a target that its constraints leave free."""
    shape = jax.eval_shape(
        lambda key: target.model.run(key, {}, target.args).log_probs, jax.random.key(0)
    )
    return site_paths(shape) - site_paths(target.constraints)


def explain(who: str, target: Target, x: Any, error: ProgramError) -> ProgramError:
    """The error of a density at x, in terms of guide and target if their sites differ."""
    wanted, found = free_sites(target), site_paths(x)
    missing, extra = sorted(wanted - found), sorted(found - wanted)
    if not missing and not extra:
        return error
    parts = []
    if missing:
        parts.append(
            f"the target has {_listed(missing)}, which the guide does not draw: draw it in the "
            "guide, or fix it in the target, ppl.Target(model, args, {site: value})"
        )
    if extra:
        parts.append(
            f"the guide draws {_listed(extra)}, which the target does not have free: leave it out, "
            "or integrate it out, ppl.marginal(guide, ppl.select(...), inference.Importance(n))"
        )
    return ProgramError(f"at {who} guide and target have different sites: " + "; ".join(parts))


def _listed(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names)
