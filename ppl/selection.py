"""Which choices: an algebra of names and of ranges over the leading (time) axis."""

import abc
import difflib
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool

from .errors import ProgramError
from .partial import walk

Mask = Any  # True, False, or a boolean array over the leading instance axes
Address = str | tuple[str, ...]


class Selection(eqx.Module):
    """A set of choices: combine with `|`, `&`, `~`; restrict to steps by `[t:]`, `[:t]`, `[t]`."""

    @abc.abstractmethod
    def mask(self, path: tuple[str, ...], shape: tuple[int, ...]) -> Mask:
        """Membership of the instances (axes `shape`) of the site at `path`."""

    def masks(self, log_probs: Any) -> Any:
        """The membership masks of all sites; every name must be one of a site."""
        paths: list[tuple[str, ...]] = []

        def leaf(path, log_prob):
            paths.append(path)
            return self.mask(path, jnp.shape(log_prob))

        masks = walk(leaf, log_probs)
        known = {path[:n] for path in paths for n in range(1, len(path) + 1)}
        for address in self.addresses():
            if address not in known:
                names = sorted("/".join(path) for path in known)
                near = difflib.get_close_matches("/".join(address), names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {names}"
                raise ProgramError(
                    f"a selection names {'/'.join(address)!r}, which is no site: {hint}"
                )
        return masks

    @abc.abstractmethod
    def addresses(self) -> tuple[tuple[str, ...], ...]:
        """All addresses that occur in the selection."""

    def __or__(self, other: "Selection") -> "Selection":
        return _Or(self, other)

    def __and__(self, other: "Selection") -> "Selection":
        return ~(~self | ~other)

    def __invert__(self) -> "Selection":
        return _Not(self)

    def __getitem__(self, index) -> "Selection":
        if isinstance(index, slice):
            if index.step is not None:
                raise ProgramError("a selection takes no stride: write sel[start:stop]")
            return _Range(
                self,
                *(None if i is None else jnp.asarray(i, int) for i in (index.start, index.stop)),
            )
        start = jnp.asarray(index, int)
        # After the last step (-1) there is no step 0: the range goes to the end.
        return _Range(self, start, jnp.where(start == -1, jnp.iinfo(start.dtype).max, start + 1))


class _Names(Selection):
    named: tuple[tuple[str, ...], ...] = eqx.field(static=True)

    def addresses(self):
        return self.named

    def mask(self, path, shape):
        return any(path[: len(a)] == a for a in self.named)


class _Not(Selection):
    inner: Selection

    def addresses(self):
        return self.inner.addresses()

    def mask(self, path, shape):
        return _not(self.inner.mask(path, shape))


class _Or(Selection):
    left: Selection
    right: Selection

    def addresses(self):
        return self.left.addresses() + self.right.addresses()

    def mask(self, path, shape):
        a, b = self.left.mask(path, shape), self.right.mask(path, shape)
        if a is True or b is True:
            return True
        if a is False or b is False:
            return b if a is False else a
        return a | b


class _Range(Selection):
    inner: Selection
    start: Bool[Array, ""] | Any
    stop: Any

    def addresses(self):
        return self.inner.addresses()

    def mask(self, path, shape):
        inner = self.inner.mask(path, shape)
        if inner is False:
            return False
        if not shape:
            raise ProgramError(
                f"cannot select steps of site {'/'.join(path)!r}: it has no leading axis. Instead "
                "of "
                "slicing the selection, name the site whole; only sites under scan, vmap or a "
                "StateSpace step have steps."
            )
        index = jnp.arange(shape[0])
        # Negative bounds count from the end, as in Python.
        start, stop = (
            None if i is None else jnp.where(i < 0, i + shape[0], i)
            for i in (self.start, self.stop)
        )
        hit = jnp.ones(shape[0], bool)
        hit = hit if start is None else hit & (index >= start)
        hit = hit if stop is None else hit & (index < stop)
        hit = hit.reshape((shape[0],) + (1,) * (len(shape) - 1))
        return jnp.broadcast_to(hit, shape) if inner is True else hit & inner


def _not(mask: Mask) -> Mask:
    return (not mask) if isinstance(mask, bool) else ~mask


def select(*names: Address) -> Selection:
    """The choices at the names; a tuple is an address in calls: `select("z", ("c", "x"))`.

    A name selects everything under it; `select()` selects nothing and `~select()` everything.
    """
    return _Names(tuple((n,) if isinstance(n, str) else tuple(n) for n in names))
