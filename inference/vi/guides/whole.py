"""Guides that draw all coordinates of a layout at once, as generative functions with its sites."""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ....ppl.errors import ProgramError, site_name
from ....ppl.generative import PLAIN, GenerativeFunction, Outcome
from ....ppl.partial import Choices, Partial, as_value
from .layout import Layout, put


class Whole(GenerativeFunction):
    """A law of the coordinates of a `Layout`, of which either all sites are given or none.

    The log density of the whole is kept at the first site: `project` has no other parts. The
    arguments a guide is run with are not read.
    """

    layout: eqx.AbstractVar[Layout]

    @abc.abstractmethod
    def draw(self, key: PRNGKeyArray) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """A draw of the coordinates and its log density, nats."""

    @abc.abstractmethod
    def log_prob(self, z: Float[Array, " d"]) -> Float[Array, ""]:
        """Log density with respect to the coordinates, nats."""

    def run(self, key, given, args, request=PLAIN):
        """See `GenerativeFunction.run`; all sites are given, at the same instances, or none."""
        values, mask = self._read(given, request.where)
        if (values is None or mask is not None) and request.complete:
            raise ProgramError(
                f"no values for the sites of the guide at {site_name(request.where, '')}: assess "
                "needs every choice"
            )
        z = log_q = jnp.zeros(())
        if values is not None:
            z = self.layout.position(values)
            log_q = self.log_prob(z)
        if values is None or mask is not None:
            assert key is not None, "only a complete request goes without a key"
            drawn, log_drawn = self.draw(key)
            z = drawn if mask is None else jnp.where(mask, z, drawn)
            log_q = log_drawn if mask is None else jnp.where(mask, log_q, log_drawn)
        choices, log_volume = self.layout.choices(z)
        first, *rest = self.layout.sites
        log_probs: dict[str, Any] = {}
        for site in (first, *rest):
            share = log_q - log_volume if site is first else jnp.zeros(())
            each = jnp.zeros(site.instances).astype(share.dtype)
            put(log_probs, site.path, each.at[(0,) * len(site.instances)].set(share))
        reports = None if request.probe is None else {}
        return Outcome(choices, log_probs, {}, jnp.zeros(()), {}, reports)

    def _read(self, given: Any, where: tuple[str, ...]) -> tuple[Choices | None, Any]:
        """All values and their mask, or None; an error if only some are given."""
        if not given:
            return None, None
        values: dict[str, Any] = {}
        masks, missing = [], []
        for site in self.layout.sites:
            node: Any = given
            for name in site.path:
                node = node.get(name) if isinstance(node, dict) else None
            if node is None:
                missing.append("/".join(site.path))
                continue
            part: Partial = as_value(node)
            masks.append(part.mask)
            put(values, site.path, part.value)
        unknown = sorted(set(given) - {site.path[0] for site in self.layout.sites})
        if unknown:
            raise ProgramError(f"a value was given for {unknown}, which the guide does not draw")
        same = all(mask is masks[0] for mask in masks)
        if missing or not same or (masks[0] is not None and jnp.ndim(masks[0])):
            what = f"{missing} are not given" if missing else "they are given at some instances"
            raise ProgramError(
                f"this guide draws all its sites at once, so that it cannot draw some given others "
                f"({what}): give all or none, or use vi.guides.full_rank, which conditions"
            )
        return values, masks[0]
