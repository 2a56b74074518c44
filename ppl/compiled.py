"""`jit` for entry points: once per structure of the arguments, programs compared by content."""

import functools
from collections.abc import Callable

import equinox as eqx

from .code import Fingerprints


def compiled(fn: Callable) -> Callable:
    """Compile `fn`; arrays in the arguments are dynamic, the rest is static, compared by value.

    A second call with other arrays of the same shapes compiles nothing.
    """

    @eqx.filter_jit
    def inner(_fingerprints, args, kwargs):
        return fn(*args, **kwargs)

    @functools.wraps(fn)
    def wrapped(*args, **kwargs):
        return inner(Fingerprints.of((args, kwargs)), args, kwargs)

    wrapped.lower = lambda *args, **kwargs: inner.lower(  # pyright: ignore
        Fingerprints.of((args, kwargs)), args, kwargs
    )
    return wrapped
