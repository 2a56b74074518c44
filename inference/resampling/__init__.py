"""Resampling: replace a weighted population by an equally weighted one, without bias."""

from .base import Resampler as Resampler
from .base import effective_sample_size as effective_sample_size
from .base import is_dead as is_dead
from .differentiable import Soft as Soft
from .differentiable import StopGradient as StopGradient
from .killing import Killing as Killing
from .multinomial import Multinomial as Multinomial
from .residual import Residual as Residual
from .ssp import SSP as SSP
from .stratified import Stratified as Stratified
from .systematic import Systematic as Systematic
