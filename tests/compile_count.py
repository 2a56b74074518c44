"""Count XLA compilations, to hold the law that a second call compiles nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import jax.monitoring

# Recorded around the request for an executable, so a hit in the persistent cache counts as well;
# a hit in the in-memory cache of a jitted function does not get that far.
EVENT = "/jax/core/compile/backend_compile_duration"


@dataclass
class Compiles:
    """Names of the functions compiled so far, one entry an executable."""

    names: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.names)


@contextmanager
def compiles() -> Iterator[Compiles]:
    """Count the executables built inside the block: `with compiles() as c: f(x)`, then `c.count`.

    Every executable counts, also those of eager `jax.numpy` operations: make the arguments before
    the block. When an assertion on `count` fails, `names` says what was compiled.
    """
    seen = Compiles()

    def listen(event: str, duration: float, **kwargs: object) -> None:
        if event == EVENT:
            seen.names.append(str(kwargs.get("fun_name", "?")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
