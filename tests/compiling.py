"""Options for `jax.jit` in tests that compute for longer than they compile."""

# What `conftest.py` turns off for the rest.
OPTIMIZED = {"xla_backend_optimization_level": 3}
