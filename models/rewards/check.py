"""Yes-or-no rules by a Python function."""

from collections.abc import Callable
from typing import Any

from .host import HostPotential
from .scores import KEPT, Scores, as_permission


class Check(HostPotential):
    """`fn(text) -> bool` as a weight of 1 or 0, by a Python function.

    Law: `lm * Check(fn)` is p(x) over the complete texts x with fn(x). With `prefixes=True` the
    rule also holds for everything written on the way: it has to be prefix-closed (once False,
    False for all that follows), and the draws of `models.rejection` obey it.

    Args and failures as in `models.Reward`; anything but True or False is a failure.
    """

    def __init__(
        self,
        fn: Callable[[Any], Any],
        name: str | None = None,
        *,
        batched: bool = False,
        prefixes: bool = False,
        whole: bool = False,
        cache: int = KEPT,
    ):
        scores = Scores(fn, name, read=as_permission, batched=batched, size=cache)
        super().__init__(scores, prefixes, whole)
