"""Sequential quasi-Monte Carlo: particles moved by points that fill the cube evenly."""

from .filter import SQMC as SQMC
from .hilbert import hilbert_index as hilbert_index
from .sobol import scrambled_sobol as scrambled_sobol
