"""Guides made for a target: normal laws, flows, points, amortized, and NumPyro's own."""

from .flow import Flow as Flow
from .flow import flow as flow
from .guide import amortized as amortized
from .guide import full_rank as full_rank
from .guide import law as law
from .guide import low_rank as low_rank
from .guide import mean_field as mean_field
from .laws import FullRank as FullRank
from .laws import Law as Law
from .laws import LowRank as LowRank
from .laws import MeanField as MeanField
from .numpyro_guide import from_numpyro as from_numpyro
from .point import delta as delta
from .point import laplace as laplace
