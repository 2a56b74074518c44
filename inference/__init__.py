"""Inference: algorithms with properly weighted populations, and invariant kernels."""

from ..ppl.status import InferenceError as InferenceError
from ..ppl.status import Status as Status
from . import exact as exact
from . import mcmc as mcmc
from .importance import Importance as Importance
from .mapping import Chunked as Chunked
from .mapping import Mapping as Mapping
from .mapping import Sharded as Sharded
from .mapping import Vmap as Vmap
from .mcmc import MH as MH
from .mcmc import Kernel as Kernel
from .mcmc import Repeat as Repeat
from .particles import Particles as Particles
from .pooling import pool as pool
from .record import Record as Record
from .resampling import SSP as SSP
from .resampling import Killing as Killing
from .resampling import Multinomial as Multinomial
from .resampling import Resampler as Resampler
from .resampling import Residual as Residual
from .resampling import Stratified as Stratified
from .resampling import Systematic as Systematic
from .resampling import effective_sample_size as effective_sample_size
from .smc import SMC as SMC
from .smc import run_many as run_many
