"""The one place that asks JAX which transformation is being traced."""

from jax.extend.core import get_opaque_trace_state


def trace_state():
    """An opaque value, equal at two points exactly when the same transformation traces them."""
    return get_opaque_trace_state()
