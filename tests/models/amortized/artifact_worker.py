"""A new process: reads an artifact, answers, counts traces and compilations, tells the time."""

import json
import sys
import time

import jax
import jax.monitoring
import numpy as np

import feynkac  # noqa: F401
from feynkac.models.amortized import artifact

jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
counts = {"compile": 0}


def count(event, duration, **_):
    counts["compile"] += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(count)
path, given, out = sys.argv[1:]
inputs = dict(np.load(given))
start, cpu = time.perf_counter(), time.process_time()
loaded = artifact.load(path)
value = np.asarray(loaded(**inputs))
took, took_cpu = time.perf_counter() - start, time.process_time() - cpu
np.save(out, value)
counts_first = dict(counts)
loaded(**{name: x + x.dtype.type(0) for name, x in inputs.items()})
print(json.dumps({"s": took, "cpu": took_cpu, "first": counts_first, "then": counts}))
